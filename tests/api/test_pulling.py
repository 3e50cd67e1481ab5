"""Submitting pulls: what is refused at once, and what keeps the upload that a job names."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import error_of, upload

GGUF = b"GGUF\x03\0\0\0" + bytes(16)


def pull(api: httpx.Client, source: dict[str, Any], name: str = "pulled") -> httpx.Response:
    return api.post("/v1/jobs", json={"kind": "pull", "params": {"source": source, "name": name}})


class TestSubmit:
    def test_an_upload_that_is_pulled_cannot_be_deleted(self, api: httpx.Client) -> None:
        file_id = upload(api, GGUF, "m.gguf")
        job = pull(api, {"file": file_id})
        assert job.status_code == 202, job.text
        assert [step["name"] for step in job.json()["steps"]] == ["pull", "verify", "publish"]
        answer = api.delete(f"/v1/files/{file_id}")
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "file_in_use"
        api.post(f"/v1/jobs/{job.json()['id']}/cancel")
        assert api.delete(f"/v1/files/{file_id}").status_code == 200
        retried = api.post(f"/v1/jobs/{job.json()['id']}/retry")
        assert error_of(retried)["code"] == "file_deleted"

    def test_an_old_format_is_refused_at_once_with_how_to_convert(self, api: httpx.Client) -> None:
        answer = pull(api, {"file": upload(api, b"tjgg\x01\0\0\0" + bytes(16), "ggml-model-q4_0.bin")})
        assert answer.status_code == 400
        error = error_of(answer)
        assert (error["param"], error["code"]) == ("source.file", "unsupported_model_format")
        assert "GGJT v1" in error["message"]
        assert "convert_llama_ggml_to_gguf" in error["message"]

    @pytest.mark.parametrize(
        ("source", "param"),
        [
            ({}, "source"),
            ({"file": "file-1", "hub": "a/b"}, "source"),
            ({"file": "file-0"}, "source.file"),
            ({"ollama": "qwen3:0.6b"}, "source.ollama"),
            ({"ollama": "qwen3", "revision": "x"}, "source"),
            ({"hub": "../../etc"}, "source.hub"),
            ({"hub": "a/b", "filename": "../../x.gguf"}, "source.filename"),
            ({"hub": "a/b", "token": "hf_x"}, "source.token"),
            ({"hub": "a/b", "endpoint": "http://evil"}, "source.endpoint"),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, api: httpx.Client, source: dict[str, Any], param: str
    ) -> None:
        answer = pull(api, source)
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["param"] == param

    def test_a_prompt_format_is_for_files(self, api: httpx.Client) -> None:
        for source, prompt_format in (({"ollama": "qwen3"}, "llama"), ({"hub": "a/b"}, "rwkv")):
            params = {"source": source, "name": "pulled", "prompt_format": prompt_format}
            answer = api.post("/v1/jobs", json={"kind": "pull", "params": params})
            assert answer.status_code == 400
            assert "prompt_format" in error_of(answer)["message"]

    def test_a_base_model_is_not_replaced(self, api: httpx.Client) -> None:
        assert error_of(pull(api, {"hub": "a/b"}, name="tiny"))["param"] == "name"
