"""The signature, the nonces and the credentials of the v1 client."""

from __future__ import annotations

import threading

import pytest

import support_client as support
from spotledger.client.trader.signing import Credentials, NonceClock, clean_params, signature, signed_params


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"accesskey": support.ACCESSKEY, "nonce": support.NONCE},
            "f26c4af0871fd117f80ee0a47781623c52340cb302ce982a738ff12e26b2823b",
        ),
        (
            {"nonce": support.NONCE, "account": "2", "accesskey": support.ACCESSKEY},
            "1e93a931faf3986c99358c00a82a94342e9af163c828b6b0a7678fd52b4f924c",
        ),
        (
            {"accessKey": support.ACCESSKEY, "nonce": support.NONCE},
            "065efcf0c4294f482096d45c92ba94054f94049b381b61b60424e78aedbff810",
        ),
    ],
)
def test_signature_vectors_of_the_wire_hold(params: dict[str, str], expected: str) -> None:
    """The published vectors come out, in whatever order the parameters are given."""
    assert signature(params, support.SECRETKEY) == expected
    assert signature(dict(reversed(params.items())), support.SECRETKEY) == expected


def test_signature_leaves_out_signature_and_blank_values() -> None:
    """An earlier signature and blank values take no part in what is signed."""
    params = {"accesskey": support.ACCESSKEY, "nonce": support.NONCE}
    more = params | {"signature": "ff", "sign": ""}
    assert signature(more, support.SECRETKEY) == signature(params, support.SECRETKEY)


def test_signature_sorts_capitals_before_small_letters() -> None:
    """Names are sorted by their bytes, so that a capital comes before a small letter."""
    assert signature({"alpha": "2", "Zeta": "1"}, "s") == (
        "7079b1478feff1ee9d15cdae61bfac0629caa9808becc1a0f31e197cba881323"
    )


def test_signed_params_fill_in_key_nonce_and_signature_last() -> None:
    """What is sent are the sorted parameters and then the signature over them."""
    pairs = signed_params({"account": "2"}, Credentials(support.ACCESSKEY, support.SECRETKEY), support.NONCE)
    assert pairs == (
        ("accesskey", support.ACCESSKEY),
        ("account", "2"),
        ("nonce", support.NONCE),
        ("signature", "1e93a931faf3986c99358c00a82a94342e9af163c828b6b0a7678fd52b4f924c"),
    )


def test_clean_params_callers_dict_is_neither_kept_nor_changed() -> None:
    """The caller may change his dict afterwards, and finds in it what he put there."""
    given: dict[str, str | int] = {"account": 2}
    cleaned = clean_params(given)
    given["account"] = 3
    assert cleaned == {"account": "2"}
    assert given == {"account": 3}


@pytest.mark.parametrize("name", ["accesskey", "accessKey", "NONCE", "signature", "", "a=b", "a&b", "é", "a b"])
def test_clean_params_name_that_cannot_be_signed_raises(name: str) -> None:
    """A name that the signing fills in, or that could be read in two ways, is misuse."""
    with pytest.raises(ValueError, match="parameter"):
        clean_params({name: "1"})


@pytest.mark.parametrize("value", ["", "1&account=3", "50%", "%26", "\ud800"])
def test_clean_params_ambiguous_value_raises(value: str) -> None:
    """A value that is blank, that a server would refuse, or that could smuggle in another parameter, is misuse."""
    with pytest.raises(ValueError, match="the value of parameter 'account'") as raised:
        clean_params({"account": value})
    assert str(raised.value).isascii()


def test_clean_params_name_in_two_cases_raises() -> None:
    """A server compares names without case, so the client refuses to send one twice."""
    with pytest.raises(ValueError, match="'Coin' is given twice"):
        clean_params({"coin": "btc", "Coin": "eth"})


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({f"p{number}": "1" for number in range(30)}, "33 parameters; 32 at most would pass"),
        ({"note": "é" * 700}, "bytes long, encoded; 4096 at most would pass"),
    ],
)
def test_signed_params_beyond_what_a_server_takes_raise(params: dict[str, str], found: str) -> None:
    """What a server would refuse as too many or too long is not signed."""
    credentials = Credentials(support.ACCESSKEY, support.SECRETKEY)
    with pytest.raises(ValueError, match=found):
        signed_params(params, credentials, support.NONCE)
    fewer = dict(list(params.items())[:29]) if len(params) > 1 else {"note": "é" * 600}
    assert len(signed_params(fewer, credentials, support.NONCE)) == len(fewer) + 3


def test_credentials_whose_access_key_cannot_be_signed_are_refused() -> None:
    """The access key is a value that is signed: no percent sign. A secret may have one."""
    with pytest.raises(ValueError, match="accesskey contains '%'"):
        Credentials("a%41", support.SECRETKEY)
    assert Credentials(support.ACCESSKEY, "50%").secretkey == "50%"


@pytest.mark.parametrize("value", [1.5, True, None, b"1"])
def test_clean_params_value_of_other_type_raises(value: object) -> None:
    """Only text and whole numbers have one written form."""
    with pytest.raises(TypeError, match="must be text or int"):
        clean_params({"account": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("bad", ["", " x", "x\n", "a b", "a&b", "é", "x" * 257, None, b"abc"])
def test_credentials_of_impossible_form_are_refused_unrepeated(bad: str) -> None:
    """A credential with a blank or newline around it, as from a file, is refused without being shown."""
    for arguments in ((bad, support.SECRETKEY), (support.ACCESSKEY, bad)):
        with pytest.raises(ValueError, match="printable ASCII") as raised:
            Credentials(*arguments)
        assert support.SECRETKEY not in str(raised.value)
        assert support.ACCESSKEY not in str(raised.value)


def test_credentials_repr_shows_no_secret_and_no_whole_key() -> None:
    """The repr shows the first four characters of the access key only, and none of a short one."""
    assert repr(Credentials(support.ACCESSKEY, support.SECRETKEY)) == "Credentials('1111…')"
    assert repr(Credentials("abcd", "s")) == "Credentials('…')"


def test_nonce_within_one_millisecond_grows() -> None:
    """Two nonces of one millisecond differ, so that their signatures do."""
    clock = NonceClock(lambda: 1562919832183)
    assert [clock.nonce(), clock.nonce()] == ["1562919832183", "1562919832184"]


def test_nonce_after_correction_follows_the_server_even_backwards() -> None:
    """A correction takes effect at once, also when the machine was ahead."""
    clock = NonceClock(lambda: 1562919832183)
    clock.nonce()
    clock.correct(-3_600_000)
    assert clock.nonce() == str(1562919832183 - 3_600_000)


@pytest.mark.parametrize("now_ms", [-5, 0, 17, 10**13 - 1, 10**13, 10**15])
def test_nonce_of_absurd_clock_is_still_thirteen_digits(now_ms: int) -> None:
    """However wrong the clock, the server can read the nonce and say that it is the clock."""
    clock = NonceClock(lambda: now_ms)
    for nonce in (clock.nonce(), clock.nonce()):
        assert len(nonce) == 13
        assert nonce.isdigit()


def test_nonce_of_many_threads_is_never_given_twice() -> None:
    """Threads that share a client never share a nonce."""
    clock = NonceClock(lambda: 1562919832183)
    given: list[str] = []
    threads = [threading.Thread(target=lambda: given.extend([clock.nonce() for _ in range(500)])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(given)) == 4_000
