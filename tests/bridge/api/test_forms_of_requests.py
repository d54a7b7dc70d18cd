"""What a request may look like: every row is a form that some program writes, and what the service makes of it."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
import requests
from PIL import Image

from tests.bridge.gateway_process import BODY, GatewayProcess, ModelsThread, running_gateway
from tests.bridge.graphs import chosen
from tests.bridge.house import write_mode

PREFIX = "test.forms"
JSON = {"Content-Type": "application/json"}
NODES: dict[str, dict[str, Any]] = {
    "20": chosen("image", "image"),
    "21": chosen("boolean", "tile", True),
    "22": {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "style", "value": "oil"}},
    "23": {
        "class_type": "NeuroLuxIntegerParameter",
        "inputs": {"name": "rows", "value": 2, "minimum": 1, "maximum": 200, "step": 1},
    },
}
ENDPOINTS = ("/v1/generate-image", "/v1/jobs", "/v1/modes/text-to-image", "/v1/modes/paint")
OPTIONAL = (
    *("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed", "model", "num_images"),
    *("output_format", "mode", "job_id", "callback_url", "cancel_on_disconnect"),
)


def photo() -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").save(data, "PNG")
    return data.getvalue()


PHOTO = photo()
TEXT = base64.b64encode(PHOTO).decode()


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("forms")
    write_mode(folder / "workflows", "paint", NODES)
    options = ("--max-pending", "10000", "--job-timeout-s", "0.05", "--max-body-bytes", "2000000")
    with running_gateway(nats_url, folder, *options, prefix=PREFIX) as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


def send(gateway: GatewayProcess, path: str, **options: Any) -> requests.Response:
    """A request that does not wait: where the endpoint would, a 504 says that the job was accepted."""
    return gateway.post(path, **options)


def accepted(answer: requests.Response) -> bool:
    return answer.status_code in (202, 504)


def error_of(answer: requests.Response) -> dict[str, Any]:
    """The error, which is short and in the envelope whatever was sent. The service goes on."""
    assert len(answer.content) < 20_000
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field", "details"}
    return error


def parameters(gateway: GatewayProcess, **options: Any) -> dict[str, Any]:
    answer = gateway.post("/v1/modes/paint", **options, headers={"Prefer": "respond-async", **options.get("h", {})})
    assert answer.status_code == 202, answer.text
    return answer.json()["parameters"]


# -- null and empty ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("as_form", [False, True], ids=["json", "form"])
def test_every_optional_field_may_be_null_and_empty_in_a_form(
    gateway: GatewayProcess, path: str, as_form: bool
) -> None:
    mine = ("image", "tile", "style", "rows", "strength") if path.endswith("paint") else ()
    for name in (*OPTIONAL, *mine):
        form: Any = {"files": {"prompt": (None, "a cat"), name: (None, "")}}
        answer = send(gateway, path, **(form if as_form else {"json": {"prompt": "a cat", name: None}}))
        assert accepted(answer), (name, answer.text)


def test_null_takes_the_default(gateway: GatewayProcess) -> None:
    nulls = dict.fromkeys(("style", "rows", "tile", "strength", "output_format"))
    made = parameters(gateway, json={"prompt": "a cat", **nulls})
    assert made.pop("seed") >= 0
    assert made == {"prompt": "a cat", "output_format": "png"}
    full = gateway.post("/v1/jobs", json={"prompt": "a cat", "num_images": None}).json()["parameters"]
    assert (full["num_images"], full["output_format"]) == (1, "png")


# -- prompts -------------------------------------------------------------------------------------------------------

BLANK = ["", " ", "\n\t ", "\u3000\u00a0\u2003", "\u200b\u200d\ufeff", "\u2800\u3164", "\u202e\u2066", "\u00ad \x1f"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("as_form", [False, True], ids=["json", "form"])
@pytest.mark.parametrize("prompt", BLANK, ids=ascii)
def test_a_prompt_that_shows_nothing_is_refused(gateway: GatewayProcess, path: str, as_form: bool, prompt: str) -> None:
    form: Any = {"files": {"prompt": (None, prompt.encode())}}
    answer = send(gateway, path, **(form if as_form else {"json": {"prompt": prompt}}))
    assert (answer.status_code, error_of(answer)["field"]) == (422, "prompt"), answer.text


@pytest.mark.parametrize("prompt", ["a", "\u200ba\u200b", "猫", "👩\u200d🚀", "é", "।"])
def test_a_prompt_that_shows_something_is_taken_as_it_is(gateway: GatewayProcess, prompt: str) -> None:
    answer = gateway.post("/v1/jobs", json={"prompt": prompt})
    assert answer.status_code == 202, answer.text
    assert answer.json()["parameters"]["prompt"] == prompt


# -- base64 --------------------------------------------------------------------------------------------------------

MIME = "\r\n".join(textwrap.wrap(TEXT, 76)) + "\r\n"
URL_SAFE = base64.urlsafe_b64encode(PHOTO).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.rstrip("="),
        MIME,
        MIME.replace("\r", ""),
        MIME.replace("\r\n", "\n\t "),
        URL_SAFE,
        URL_SAFE.rstrip("="),
        f"data:image/png;base64,{TEXT}",
        f"data:;base64,{TEXT}",
        f'DATA:image/png;charset=utf-8;name="a, b.png";BASE64,{MIME}',
        f"data:image/png;base64,{quote(TEXT, safe='')}",
        f" data:application/octet-stream;base64,\n{URL_SAFE}",
    ],
    ids=lambda text: ascii(text[:45]),
)
def test_base64_is_read_as_programs_write_it(gateway: GatewayProcess, text: str) -> None:
    reference, plain = (parameters(gateway, json={"prompt": "a", "image": each})["image"] for each in (text, TEXT))
    assert reference.partition("#")[2] == plain.partition("#")[2]


@pytest.mark.parametrize(
    "text",
    [f"data:image/png,{TEXT}", TEXT + "====", "A", "é" + TEXT, TEXT[:40] + "=" + TEXT[40:], TEXT[:9] + "*", "x.png"],
    ids=lambda text: ascii(text[:20]),
)
def test_other_texts_are_no_images(gateway: GatewayProcess, text: str) -> None:
    answer = gateway.post("/v1/modes/paint", json={"prompt": "a cat", "image": text})
    assert (answer.status_code, error_of(answer)["field"]) == (422, "image")


def test_escapes_do_not_count_as_text(gateway: GatewayProcess) -> None:
    noise = io.BytesIO()
    Image.effect_noise((1900, 1900), 90).save(noise, "PNG", compress_level=0)
    text = base64.b64encode(noise.getvalue()).decode()
    body = json.dumps({"prompt": "a cat", "image": "\r\n".join(text[at : at + 8] for at in range(0, len(text), 8))})
    assert body.count("\\") > 1_000_000
    answer = gateway.post("/v1/modes/paint", data=body, headers={**JSON, "Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text


# -- JSON ----------------------------------------------------------------------------------------------------------

PLAIN = json.dumps(BODY)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode("utf-8-sig"),
        b" \r\n\t" + PLAIN.encode() + b"\n",
        PLAIN.replace("512", "512.0").encode(),
        PLAIN.replace("512", "5.12e2").encode(),
        b'{"prompt": "\\ud83d\\ude00 \\u0022quoted\\u0022"}',
    ],
    ids=lambda data: ascii(data[:40]),
)
def test_json_as_programs_write_it_is_read(gateway: GatewayProcess, data: bytes) -> None:
    answer = gateway.post("/v1/jobs", data=data, headers=JSON)
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (PLAIN.encode("utf-16"), "UTF-16"),
        (PLAIN.encode("utf-16-le"), "UTF-16"),
        (PLAIN.encode("utf-32"), "UTF-32"),
        (b"\xef\xbb\xbf", "not JSON"),
        (b"", "not JSON"),
        (b'{"prompt": "\xe9"}', "not JSON"),
        (b'{"prompt": "\\ud800"}', "not JSON"),
        (b'{"prompt": "a\\udc00"}', "not JSON"),
        (b'{"prompt": "\xed\xa0\x80"}', "not JSON"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "not JSON"),
        (b'{"prompt": "a", "guidance_scale": -Infinity}', "not JSON"),
        (b'{"prompt": "a", "guidance_scale": 1e400}', "too large"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        (b'{"prompt": "a", "\\u0070rompt": "b"}', "'prompt' is given twice"),
        (b'{"prompt": "a", "image": {"x": "\\u0022", "x": 1}}', "'x' is given twice"),
        (b'{"prompt": ' + b"[" * 100_000, "not JSON"),
        (b'{"prompt": ' + b'{"a":' * 100_000, "not JSON"),
    ],
    ids=lambda value: ascii(value[:40]),
)
@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/modes/paint"])
def test_what_is_no_json_is_said(gateway: GatewayProcess, path: str, data: bytes, said: str) -> None:
    answer = gateway.post(path, data=data, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert error["code"] == "not_json"
    assert said in error["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seed": 10**400}, "seed"),
        ({"width": [[[["deep"] * 100] * 100]]}, "width"),
        ({"num_images": True}, "num_images"),
        ({"num_images": "1"}, "num_images"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"mode": 7}, "mode"),
        ({"mode": ["a"] * 10_000}, "mode"),
        ({"output_format": "x" * 100_000}, "output_format"),
        ({"job_id": "x" * 100_000}, "job_id"),
        ({"callback_url": "x" * 100_000}, "callback_url"),
        ({"cancel_on_disconnect": "true"}, "cancel_on_disconnect"),
        ({"x" * 100_000: 1}, "x" * 200),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_bad_value_is_repeated_only_in_part(gateway: GatewayProcess, body: dict[str, Any], field: str) -> None:
    answer = gateway.post("/v1/jobs", json={"prompt": "a cat", **body})
    assert answer.status_code == 422, answer.text
    error = error_of(answer)
    assert str(error["field"])[:100] == field[:100]
    assert len(answer.content) < 2000


@pytest.mark.parametrize("job_id", ["", "x", "a.b", "*", "x" * 300, 7, "0D4C1D3A-3A3D-4B9F-8A51-0B2F3C4D5E6F"])
def test_a_bad_job_id_is_refused_with_a_key_too_and_does_not_take_it(gateway: GatewayProcess, job_id: Any) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    answer = gateway.post("/v1/jobs", json={"prompt": "a cat", "job_id": job_id}, headers=key)
    assert (answer.status_code, error_of(answer)["field"]) == (422, "job_id"), answer.text
    assert gateway.post("/v1/jobs", json={"prompt": "a cat"}, headers=key).status_code == 202


def test_very_many_mistakes_make_a_short_answer(gateway: GatewayProcess) -> None:
    body = {"prompt": "a cat", **{f"field_{number}": number for number in range(60_000)}}
    answer = gateway.post("/v1/jobs", json=body)
    assert answer.status_code == 422, answer.text
    error = error_of(answer)
    assert len(error["details"]) < 60
    assert "59980 more fields" in error["details"][-1]["message"]
    assert answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "x" * 250, "é" * 200, "%00", "%FF%FE", "..", "a" * 300 + ".json", "%F0%9F%98%80" * 90],
    ids=lambda name: name[:12],
)
def test_a_mode_that_no_file_can_be_called_is_unknown(gateway: GatewayProcess, name: str) -> None:
    for answer in (gateway.get(f"/v1/modes/{name}"), gateway.post(f"/v1/modes/{name}", json={"prompt": "a"})):
        assert answer.status_code == 404, answer.text
        assert error_of(answer)["code"] in ("unknown_mode", "not_found")
    if "%" not in name:
        answer = gateway.post("/v1/jobs", json={"prompt": "a", "mode": name})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_mode")


# -- forms ---------------------------------------------------------------------------------------------------------

NO_NUMBERS = ["1_28", "１２８", "+128", " 128", "128 ", "1e2", "0x10", "inf", "nan", "12,8", "--1", "٣", "1" * 100]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
@pytest.mark.parametrize("field", ["width", "rows", "seed"])
def test_a_form_writes_integers_in_ascii_digits(gateway: GatewayProcess, field: str, text: str) -> None:
    path = "/v1/jobs" if field == "width" else "/v1/modes/paint"
    answer = gateway.post(path, files={"prompt": (None, "a cat"), field: (None, text.encode())})
    assert (answer.status_code, error_of(answer)["field"]) == (422, field), answer.text


@pytest.mark.parametrize("text", ["0_1", "０.5", "+0.5", " 0.5", "inf", "nan", "-inf", "0x1p-1", "0,5", "1e999", "."])
def test_a_form_writes_numbers_as_json_does(gateway: GatewayProcess, text: str) -> None:
    answer = gateway.post("/v1/modes/paint", files={"prompt": (None, "a cat"), "strength": (None, text.encode())})
    assert (answer.status_code, error_of(answer)["field"]) == (422, "strength"), answer.text


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("1", 1.0), ("5e-1", 0.5), (".5", 0.5), ("0", 0.0)])
def test_numbers_of_a_form_are_read(gateway: GatewayProcess, text: str, value: float) -> None:
    form = {"prompt": (None, "a cat"), "strength": (None, text), "rows": (None, "007"), "tile": (None, "False")}
    made = parameters(gateway, files=form)
    assert (made["strength"], made["rows"], made["tile"]) == (value, 7, False)


def test_the_json_part_of_a_form_is_json(gateway: GatewayProcess) -> None:
    whole = {"prompt": "a cat", "rows": "3"}
    answer = gateway.post("/v1/modes/paint", files={"request": (None, json.dumps(whole))})
    assert (answer.status_code, error_of(answer)["field"]) == (422, "rows")
    twice = gateway.post("/v1/jobs", files={"request": (None, PLAIN), "width": (None, "512")})
    assert twice.status_code == 400
    assert "'width' is in the part request and a part of its own" in error_of(twice)["message"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-16",
        "application/json; charset=klingon",
        "application/json;charset=iso-8859-1",
        "multipart/form-data; boundary=x; charset=utf-7",
        "text/json",
        "application/x-www-form-urlencoded",
        "application/" + "x" * 4000,
        "json",
        "",
    ],
    ids=lambda text: text[:40],
)
def test_a_body_of_another_type_or_charset_is_refused(gateway: GatewayProcess, content_type: str) -> None:
    answer = gateway.post("/v1/jobs", data=PLAIN, headers={"Content-Type": content_type})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type"), answer.text


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "utf8", '"utf-8"', "us-ascii"])
def test_utf8_may_be_named(gateway: GatewayProcess, charset: str) -> None:
    headers = {"Content-Type": f"application/json; charset={charset}"}
    assert gateway.post("/v1/jobs", data=PLAIN, headers=headers).status_code == 202


def test_after_all_that_an_ordinary_request_is_taken(gateway: GatewayProcess) -> None:
    assert gateway.post("/v1/jobs", json={**BODY, "job_id": str(uuid4())}).status_code == 202
    assert not [line for line in gateway.lines() if line["level"] == "error"]
