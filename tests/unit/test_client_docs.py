"""The reference pages of getBalance, in both languages, say what they have to, and say it right."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path

import pytest

from spotledger import errors
from spotledger.client.trader import core

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["get-balance.md", "get-balance.zh-CN.md"]


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """Give the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page(name), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_page_names_every_parameter_and_code(name: str) -> None:
    """Each parameter has its row, and each code of the wire stands in a row or a list."""
    text = page(name)
    for parameter in ("accesskey", "nonce", "signature"):
        assert re.search(rf"^\| `{parameter}` \|", text, re.MULTILINE), parameter
    for code in (307, 308, 400, 404):
        assert re.search(rf"^\| {code} \|", text, re.MULTILINE), code
    assert '"code": 200' in text
    for word in ("available", "freeze", "info", "msg", "msgInfo", "Retry-After", "X-Ledger-Seq", "getServerTime"):
        assert f"`{word}`" in text or f"/{word} " in text, word


@pytest.mark.parametrize("name", PAGES)
def test_page_names_every_refusal_that_a_problem_document_can_tell(name: str) -> None:
    """Every error of a key, a signature, a nonce and a limit is named by its stable code."""
    told: list[type[errors.SpotledgerError]] = [*errors.AccessKeyRefused.__subclasses__()]
    told += [errors.SignatureRefused, errors.NonceRefused, errors.ReplayRefused, errors.LimitExceeded]
    for error in told:
        assert f"`{error.code}`" in page(name), error


@pytest.mark.parametrize("name", PAGES)
def test_page_vector_is_right(name: str) -> None:
    """The signature shown is that of the text and secret shown."""
    cells = re.findall(r"^\| [^|`]+ \| `([^`]+)` \|$", page(name), re.MULTILINE)
    accesskey, secret, nonce, text, signature = cells[:5]
    assert text == f"accesskey={accesskey}&nonce={nonce}"
    assert hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest() == signature


@pytest.mark.parametrize("name", PAGES)
def test_page_python_samples_compile_and_json_samples_parse(name: str) -> None:
    """What is shown as Python or JSON is that."""
    python = blocks(name, "python")
    assert len(python) == 3
    for sample in python:
        compile(sample, name, "exec")
    for sample in blocks(name, "json"):
        assert json.loads(sample)["code"] in {200, 308}


@pytest.mark.parametrize("name", PAGES)
def test_page_java_sample_is_that_of_the_example(name: str) -> None:
    """The signing shown is a piece of the program that the tests run."""
    example = (ROOT / "examples" / "GetBalance.java").read_text(encoding="utf-8")
    (sample,) = blocks(name, "java")
    assert sample in example


@pytest.mark.parametrize("name", PAGES)
def test_page_says_how_the_client_tries_again(name: str) -> None:
    """The waits that the page gives are those of the client."""
    assert str(core.FIRST_WAIT_S) in page(name)
    assert str(core.FIRST_WAIT_S * 2) in page(name)
    assert {"get-balance.md": "three times", "get-balance.zh-CN.md": "三次"}[name] in page(name)
    assert core.ATTEMPTS == 3


def test_pages_show_the_same_in_code_tables_and_headings() -> None:
    """The two languages have the same structure and the same samples but for texts in them."""
    english, chinese = (page(name) for name in PAGES)
    for pattern in (r"^#+ ", r"^\|", r"^\d\. ", r"^- ", r"^```"):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(re.findall(pattern, chinese, re.MULTILINE))
    for language in ("sh", "java", "json"):
        assert blocks(PAGES[0], language) == blocks(PAGES[1], language)


def test_chinese_page_uses_the_original_terms() -> None:
    """The Chinese page has the title and the terms of the original documents."""
    for term in ("获取交易(现货)账户资产", "访问密钥", "13位毫秒数", "冻结", "可用"):
        assert term in page("get-balance.zh-CN.md")
