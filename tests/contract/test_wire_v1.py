"""The v1 wire: the calls, the vectors, and how a request is read (rules R1 to R9)."""

from __future__ import annotations

import pytest

from support_public import (
    ALICE,
    BALANCE,
    FUNDS,
    KEY,
    NONCE,
    Service,
    document,
    encoded_text,
    raw_text,
    sign,
    signed_query,
)


def test_get_balance_answers_as_in_the_documents(public: Service) -> None:
    """getBalance gives every listed coin of the spot account, freeze before available, byte for byte."""
    assert public.ask(signed_query()).body == (
        b'{"code":200,"data":{"btc":{"freeze":"0.00","available":"0.00"},'
        b'"usdt":{"freeze":"3062.17437341","available":"3867.43650012"}},"info":"success"}'
    )


def test_get_funds_answers_for_each_of_the_three_accounts(public: Service) -> None:
    """getFunds gives the account that its parameter names, in the shape of getBalance."""
    public.ledger.deposit("alice", "btc", "1.5", account="wallet", key="w")
    answers = {n: document(public.ask(signed_query({"account": n}), FUNDS))["data"] for n in "123"}
    assert answers["1"]["btc"] == {"freeze": "0.00", "available": "1.50"}
    assert answers["2"] == ALICE
    assert answers["3"] == {coin: {"freeze": "0.00", "available": "0.00"} for coin in ALICE}


@pytest.mark.parametrize("account", ["0", "4", "spot", "01", "٢", "2 "])
def test_get_funds_of_an_unknown_account_is_refused(public: Service, account: str) -> None:
    """getFunds takes 1, 2 or 3 and nothing else."""
    assert public.code(signed_query({"account": account}), FUNDS) == 400
    assert public.code(signed_query(), FUNDS) == 400


def test_get_server_time_and_get_accounts_need_no_signature(public: Service) -> None:
    """The two unsigned calls answer with the server's time and the three accounts."""
    assert document(public.ask(path="/trade/api/v1/getServerTime"))["data"] == {"serverTime": NONCE}
    accounts = document(public.ask(path="/trade/api/v1/getAccounts"))["data"]
    assert accounts == [
        {"name": "wallet account", "id": 1},
        {"name": "trading account", "id": 2},
        {"name": "fiat account", "id": 3},
    ]


def test_get_accounts_signed_is_checked(public: Service) -> None:
    """getAccounts may be signed too; a signature that is there has to fit."""
    assert public.code(signed_query(), "/trade/api/v1/getAccounts") == 200
    assert public.code(signed_query(secret="0" * 64), "/trade/api/v1/getAccounts") == 308


def test_get_server_time_signed_with_a_wrong_clock_is_answered(public: Service) -> None:
    """A client whose clock is wrong gets the right time, though it signs everything."""
    assert public.code(signed_query(nonce=NONCE - 10**9), "/trade/api/v1/getServerTime") == 200


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        (f"accesskey={KEY}&nonce={NONCE}", "f26c4af0871fd117f80ee0a47781623c52340cb302ce982a738ff12e26b2823b"),
        (
            f"accesskey={KEY}&account=2&nonce={NONCE}",
            "1e93a931faf3986c99358c00a82a94342e9af163c828b6b0a7678fd52b4f924c",
        ),
        (f"accessKey={KEY}&nonce={NONCE}", "065efcf0c4294f482096d45c92ba94054f94049b381b61b60424e78aedbff810"),
    ],
)
def test_vector_of_section_5_is_accepted(public: Service, query: str, signature: str) -> None:
    """The published vectors hold."""
    assert document(public.ask(f"{query}&signature={signature}"))["data"] == ALICE


def test_r01_get_reads_the_query_and_post_the_form(public: Service) -> None:
    """R1: the parameters of a GET are in the query, those of a POST in the body."""
    assert public.code(signed_query()) == 200
    assert public.code(method="POST", body=signed_query().encode()) == 200
    assert public.code(signed_query(), method="POST") == 400
    assert public.code(body=signed_query().encode()) == 400


def test_r01_parameters_in_query_and_body_at_once_are_refused(public: Service) -> None:
    """R1: parameters in both places are refused, even where they agree; a body that holds none does no harm."""
    query = signed_query()
    assert public.code(query, body=b"a=1") == 400
    assert public.code("a=1", method="POST", body=query.encode()) == 400
    assert public.code(query, body=b"{}") == 200
    assert public.code("sign=", method="POST", body=query.encode()) == 200


@pytest.mark.parametrize("extra", ["nonce=1562919832183", "Nonce=1", "accessKey=x", "SIGNATURE=0", "%6eonce=1"])
def test_r01_a_name_twice_is_refused(public: Service, extra: str) -> None:
    """R1: a name that comes twice, compared without case and after decoding, is refused."""
    assert public.code(f"{signed_query()}&{extra}") == 400


def test_r02_empty_pairs_and_blank_values_are_ignored(public: Service) -> None:
    """R2: a trailing &, a doubled one, and names without value take no part in the request or its signature."""
    assert public.code("&" + signed_query().replace("&nonce", "&&nonce") + "&") == 200
    assert public.code(signed_query() + "&sign=&flag&nonce=") == 200


def test_r02_long_queries_and_many_parameters_are_refused(public: Service) -> None:
    """R2: 4 KiB and 32 parameters pass, more do not."""
    assert public.code(signed_query({f"p{n}": "1" for n in range(29)})) == 200
    assert public.code(signed_query({f"p{n}": "1" for n in range(30)})) == 400
    room = 4096 - len(signed_query({"long": ""}))
    assert public.code(signed_query({"long": "x" * room})) == 200
    assert public.code(signed_query({"long": "x" * (room + 1)})) == 400
    assert public.code(signed_query({"long": "é" * (room // 3)})) == 400


def test_r03_both_spellings_are_accepted_as_they_were_signed(public: Service) -> None:
    """R3: accesskey or accessKey, signed under the name that was sent; no third spelling, and never both."""
    for name, code in (("accesskey", 200), ("accessKey", 200), ("AccessKey", 400), ("access_key", 400)):
        parameters = {name: KEY, "nonce": str(NONCE)}
        assert public.code(f"{raw_text(parameters)}&signature={sign(raw_text(parameters))}") == code
    renamed = signed_query().replace("accesskey", "accessKey")
    assert public.code(renamed) == 308
    both = {"accesskey": KEY, "accessKey": KEY, "nonce": str(NONCE)}
    assert public.code(f"{raw_text(both)}&signature={sign(raw_text(both))}") == 400


ODD_NONCES = ["156291983218", "15629198321830", "1562919832183\n", " 1562919832183", "+562919832183", "1_62919832183"]


@pytest.mark.parametrize(
    "nonce", [*ODD_NONCES, "-562919832183", "0x62919832183", "1562919832e83", "156291983218.", "x"]
)
def test_r04_nonce_of_another_form_is_refused(public: Service, nonce: str) -> None:
    """R4: thirteen ASCII digits, and nothing that int() or a loose pattern would let through."""
    assert public.code(signed_query({"nonce": nonce})) == 400


@pytest.mark.parametrize("zero", ["٠", "０", "०"])
def test_r04_nonce_with_other_digits_is_refused(public: Service, zero: str) -> None:
    """R4: Arabic, full-width and Devanagari digits are digits to Python, but no nonce."""
    nonce = "".join(chr(ord(zero) + int(digit)) for digit in str(NONCE))
    assert int(nonce) == NONCE
    assert public.code(signed_query({"nonce": nonce})) == 400


def test_r05_signature_is_64_hex_digits_of_either_case(public: Service) -> None:
    """R5: upper and lower case pass; blanks, other letters and other lengths are refused before they are decoded."""
    text, _, signature = signed_query().rpartition("&signature=")
    assert public.code(f"{text}&signature={signature.upper()}") == 200
    assert public.code(f"{text}&signature={signature[:32].upper()}{signature[32:]}") == 200
    spaced = signature[:2] + "+" + signature[3:]
    for odd in (signature[:-1], signature + "0", "g" + signature[1:], spaced, "٠" * 64, "é" * 64, "%00" * 64):
        assert public.code(f"{text}&signature={odd}") == 400
    assert public.code(text) == 400


def test_r06_names_and_values_that_would_blur_the_text_are_refused(public: Service) -> None:
    """R6: a decoded & or % in a name or value, or = in a name, is refused: two requests must not sign to one text."""
    text = f"a=1&accesskey={KEY}&b=2&nonce={NONCE}"
    signature = sign(text)
    assert public.code(f"{text}&signature={signature}") == 200
    assert public.code(f"a=1%26accesskey={KEY}%26b=2&accesskey={KEY}&nonce={NONCE}&signature={signature}") == 400
    for odd in ({"a": "1&b=2"}, {"a&b": "1"}, {"a=b": "1"}, {"a": "50%"}, {"a": "b%3Dc"}, {"a%": "1"}, {"a": "%"}):
        said = document(public.ask(signed_query(odd)))
        assert said["code"] == 400
        assert "which cannot be signed; one without would pass" in said["info"]
    assert public.code(signed_query({"a": "b=c"})) == 200


def test_r07_other_parameters_are_allowed_where_signed(public: Service) -> None:
    """R7: parameters that nobody reads pass because they are signed; unsigned, they break the signature."""
    assert public.code(signed_query({"recvWindow": "5000", "lang": "zh"})) == 200
    assert public.code(signed_query() + "&lang=zh") == 308


def test_r08_trailing_slash_and_any_content_type_are_answered(public: Service) -> None:
    """R8: the path with a slash at its end is the same call, answered and not redirected."""
    answer = public.ask(signed_query(), BALANCE + "/", headers=[("content-type", "application/json")])
    assert answer.status == 200
    assert document(answer)["data"] == ALICE
    assert public.code(signed_query(), BALANCE + "//") == 404
    assert public.code(signed_query(), BALANCE.lower()) == 404


def test_r06_two_requests_of_one_signature_do_not_both_pass(public: Service) -> None:
    """R6: of two requests, of which one has the encoded value of the other, at most one passes with a signature."""
    for one, other in (("a=b", "a%3Db"), ("a b", "a+b"), ("é", "%C3%A9")):
        parameters = {"accesskey": KEY, "nonce": str(NONCE), "note": one}
        signature = sign(encoded_text(parameters))
        sent = [encoded_text({**parameters, "note": value}) + f"&signature={signature}" for value in (one, other)]
        assert sorted(public.code(query) for query in sent) != [200, 200]


@pytest.mark.parametrize("sent", ["a%2Bb%C3%A9", "a%2bb%c3%a9", "%61%2bb%C3%a9", "a%2Bbé"])
def test_r09_escapes_in_either_case_say_the_same(public: Service, sent: str) -> None:
    """R9: the text is made of the decoded values: escapes may be sent in either case, and are signed in upper case."""
    query = f"accesskey={KEY}&nonce={NONCE}&note={sent}"
    for signed in ("a+bé", "a%2Bb%C3%A9"):
        assert public.code(f"{query}&signature={sign(f'accesskey={KEY}&nonce={NONCE}&note={signed}')}") == 200
    for signed in ("a%2bb%c3%a9", "a b%C3%A9", "a%20bé"):
        assert public.code(f"{query}&signature={sign(f'accesskey={KEY}&nonce={NONCE}&note={signed}')}") == 308


def test_r09_blank_is_signed_as_a_blank_however_it_is_sent(public: Service) -> None:
    """R6: + and %20 are the same blank, and only the text with the blank in it counts."""
    for sent in ("a+b", "a%20b"):
        query = f"accesskey={KEY}&nonce={NONCE}&note={sent}"
        assert public.code(f"{query}&signature={sign(f'accesskey={KEY}&nonce={NONCE}&note=a b')}") == 200
        for signed in ("a+b", "a%20b", "a%2Bb"):
            assert public.code(f"{query}&signature={sign(f'accesskey={KEY}&nonce={NONCE}&note={signed}')}") == 308


@pytest.mark.parametrize("value", ["é", "中文", "a+b", "a/b:c", "a=b", "~*!'()"])
def test_r09_raw_and_encoded_texts_are_both_accepted(public: Service, value: str) -> None:
    """R9: a value that encoding changes may be signed as it is or encoded; nothing else fits."""
    parameters = {"accesskey": KEY, "nonce": str(NONCE), "note": value}
    sent = encoded_text(parameters)
    assert public.code(f"{sent}&signature={sign(raw_text(parameters))}") == 200
    assert public.code(f"{sent}&signature={sign(sent)}") == 200
    assert public.code(f"{sent}&signature={sign(sent + ' ')}") == 308


def test_r09_names_are_sorted_in_byte_order(public: Service) -> None:
    """R9: upper case sorts before lower case, and ASCII before the rest, whatever the order on the wire."""
    parameters = {"é": "4", "b": "3", "Z": "1", "a": "2", "accesskey": KEY, "nonce": str(NONCE)}
    ordered = [*sorted(name for name in parameters if name != "é"), "é"]
    assert ordered[0] == "Z"
    signature = sign("&".join(f"{name}={parameters[name]}" for name in ordered))
    for names in (ordered, ordered[::-1]):
        sent = "&".join(encoded_text({name: parameters[name]}) for name in names)
        assert public.code(f"signature={signature}&{sent}") == 200
