import json
import time
from typing import Any

import pytest

from jobs.secrets import masked, without_secrets


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ('+hf_token="s3cr3t"', "+hf_token=***"),
        ("a.b.api-key=s3cr3t,other", "a.b.api-key=***"),
        ("+server={user: me, password: s3cr3t}", "+server=***"),
        ("+a={b: {'secret':s3cr3t}}", "+a=***"),
        ("+tokens=[1,s3cr3t]", "+tokens=***"),
        ("+x={tokens: [1,s3cr3t]}", "+x=***"),
        ("password=12345678", "password=***"),
        ("token=${oc.env:X,s3cr3t}", "token=***"),
        ("data.shards='https://u:s3cr3t@host/a.tar?sig=s3cr3t'", "data.shards='https://***@host/a.tar?***'"),
    ],
)
def test_a_word_with_a_secret_has_no_value(word: str, hidden: str) -> None:
    assert without_secrets([word]) == [hidden]


@pytest.mark.parametrize(
    "word",
    [
        "token=null",
        "max_tokens=100,200",
        "tokens=[1,2.5e3]",
        "+net={num_tokens: 16, token: null}",
        "a.token=${oc.env:X}",
        "password='${oc.env:X, null}'",
        "api_key=???",
        "--config-dir",
        "data.root=/a/token/b",
    ],
)
def test_a_word_without_a_secret_stays(word: str) -> None:
    assert without_secrets((word,)) == (word,)


def test_what_stands_under_a_secret_name_is_hidden() -> None:
    value: dict[str, Any] = {
        "my_tokens": ["a", 3, {"b": "c", "n": None}],
        "server": {"password": 12345678, "api_key": None, "port": 80},
        "note": "first\npassword: |\n  second\n",
    }
    assert without_secrets(value) == {
        "my_tokens": ["***", 3, {"b": "***", "n": None}],
        "server": {"password": "***", "api_key": None, "port": 80},
        "note": "first\npassword: '***'\n",
    }


@pytest.mark.parametrize("value", ["0123456789abc", 'p"a\\s/s w\n', "1234567890"])
def test_the_value_of_a_secret_variable_is_hidden_in_json(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEYS", value)
    found = {"a": f"x{value}", value: 1, "b": int(value) if value.isdecimal() else value}
    assert json.loads(masked(json.dumps(found))) == {"a": "x***", "***": 1, "b": "***"}


@pytest.mark.parametrize("text", ['{"tokens": [1, 2], "note": "é"}', '{"api_key": "***"}', '["token", 1e999]'])
def test_json_without_secrets_keeps_its_form(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize("text", ["[" * 100_000 + "token=s3cr3t", '{"token": "s3cr3t'])
def test_what_only_begins_as_json_is_text(text: str) -> None:
    assert "s3cr3t" not in masked(text)


@pytest.mark.parametrize(
    "part",
    ["token", "a-", "x://", "a://b:c/", "https://a?x=", "token=[", "token=[\n", "{token: {", "token: ", "{,", 'token="',
     'token=\\"', '"token": [\n', "token: x\n\n", "tokens:\n- 1\n", "password=${", "token=\\\\\\", " ", "[", ",token: 1"],
)  # fmt: skip
def test_the_time_for_a_long_text_grows_with_its_length(part: str) -> None:
    def seconds(length: int) -> float:
        begin = time.process_time()
        masked((part * length)[:length])
        return time.process_time() - begin

    assert seconds(200_000) < 40 * max(seconds(20_000), 1e-3)  # of the square of the length it would be 100
