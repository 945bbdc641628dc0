"""`client: sdk`: the `openai` package as a transport, compared with the lean client, and what only it knows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from echo import Echo, write_project
from inside import rlaif
from serving import Answer, Script, completion, scripted, serve, top_logprobs
from test_engine_openai import KEY, ask, bad, good

from rlaif.config import OpenAIModel
from rlaif.engines.open import api_key, extra_of
from rlaif.engines.openai import OpenAIEngine
from rlaif.engines.protocol import Request
from rlaif.errors import InputError

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
VARIABLES = (
    "OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID OPENAI_CUSTOM_HEADERS OPENAI_API_VERSION "
    "AZURE_OPENAI_API_KEY AZURE_OPENAI_AD_TOKEN AZURE_OPENAI_ENDPOINT"
).split()


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def opened(**settings: Any) -> OpenAIEngine:
    """An engine as a pipeline file opens it."""
    spec = OpenAIModel.model_validate({"engine": "openai", "model": "tiny", "retries": 0, **settings})
    return OpenAIEngine("judge", spec, api_key(spec), None, extra_of("judge", spec))


# ---------------------------------------------------------------- the same requests

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "text of every kind": ({}, {"text": "é \u2028 \U0001f600 \ud800"}),
    "several samples": ({}, {"indices": (0, 1, 2), "temperature": 1.0}),
    "log-probabilities": ({}, {"logprobs": True, "alternatives": ("A", "B"), "temperature": 0}),
    "a schema": ({}, {"json_schema": SCHEMA}),
    "headers": ({"headers": {"X-Team": "blue", "api-key": "${TEAM_KEY}"}}, {}),
    "another authorization": ({"headers": {"authorization": "Basic ${TEAM_KEY}"}}, {}),
    "a query": ({"query": {"api-version": "2024-10-21", "of": "a b&c=d/é".encode().decode("ascii", "ignore")}}, {}),
    "extra fields": ({"extra_body": {"top_k": 20, "nested": {"b": 1, "a": [None, 0.5]}}}, {}),
    "another name": ({"max_tokens_name": "max_completion_tokens"}, {"stop": ("\n",), "top_p": 0.5}),
    "what is omitted": ({"omit": ["seed", "max_tokens"], "system": "fold"}, {}),
}


def sent(client: str, settings: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    given = dict(asked)
    schema, text = given.pop("json_schema", None), given.pop("text", "hi")
    count = len(given.get("indices", (0,)))
    with scripted([Answer(completion(*["{}"] * count, logprobs=top_logprobs(A=0.5)))]) as script:
        engine = opened(client=client, base_url=script.base_url, api_key_env="JUDGE_KEY", **settings)
        good(engine, ask(text, **given).model_copy(update={"json_schema": schema}))
    (request,) = script.requests
    return request


@pytest.mark.parametrize("case", CASES)
def test_the_requests_of_both_clients_are_equal_to_the_byte(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("TEAM_KEY", "team-secret-0123456789")
    lean, sdk = (sent(client, *CASES[case]) for client in ("lean", "sdk"))
    assert (sdk["path"], sdk["raw"]) == (lean["path"], lean["raw"]) and lean["raw"]
    named = {"authorization", "content-type", "x-team", "api-key"}
    assert {k: v for k, v in sdk["headers"].items() if k in named} == {
        k: v for k, v in lean["headers"].items() if k in named
    }
    assert lean["headers"]["user-agent"].startswith("rlaif/") and "OpenAI" in sdk["headers"]["user-agent"]


def test_a_server_with_another_header_for_its_key_gets_no_bearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-secret-0123456789")
    for client in ("lean", "sdk"):
        with scripted([Answer(completion("x"))]) as script:
            good(opened(client=client, base_url=script.base_url, headers={"api-key": "${TEAM_KEY}"}), ask())
        headers = script.requests[0]["headers"]
        assert headers["api-key"] == "team-secret-0123456789" and "authorization" not in headers


def test_what_one_client_paid_for_the_other_does_not_pay_again(tmp_path: Path) -> None:
    engines = {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(engines) as url:
        write_project(tmp_path, url, prompts=4)
        assert rlaif(tmp_path, "run", "echo.yaml").code == 0
        paid = sum(len(engine.asked) for engine in engines.values())
        overrides = [f"models.{name}.client=sdk" for name in engines]
        assert rlaif(tmp_path, "run", "echo.yaml", *overrides).code == 0
        assert sum(len(engine.asked) for engine in engines.values()) == paid > 4
        (tmp_path / "other").mkdir()  # and from the beginning, where nothing is stored
        write_project(tmp_path / "other", url, prompts=4)
        assert rlaif(tmp_path / "other", "run", "echo.yaml", *overrides).code == 0
        assert sum(len(engine.asked) for engine in engines.values()) == 2 * paid
    same = "runs/echo/stages/04-pair.jsonl"
    assert (tmp_path / same).read_bytes() == (tmp_path / "other" / same).read_bytes()


# ---------------------------------------------------------------- the package's variables


def test_the_package_s_variables_are_honoured_and_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "org-planted-123 proj-planted-123 head-planted-123 key-planted-123"
    with scripted([Answer({"error": {"message": told}}, status=401), Answer(completion("x"))]) as script:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{script.base_url}/")
        monkeypatch.setenv("OPENAI_API_KEY", "key-planted-123")
        monkeypatch.setenv("OPENAI_ORG_ID", "org-planted-123")
        monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-planted-123")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Extra: head-planted-123")
        error = bad(opened(client="sdk"), ask())
        assert "planted" not in str(error) and "OPENAI_API_KEY" in str(error)
        good(opened(client="sdk"), ask())
        lean = opened(client="lean", base_url=script.base_url)
        assert opened(client="sdk").identity == lean.identity  # whatever names the server
        assert opened(client="lean").urls == ("https://api.openai.com/v1",)
    headers = script.requests[1]["headers"]
    assert script.requests[1]["path"] == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer key-planted-123" and headers["x-extra"] == "head-planted-123"
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-planted-123", "proj-planted-123")


def test_a_stated_server_is_not_moved_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-planted-123")
    with scripted([Answer(completion("x"))]) as script:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        good(opened(client="sdk", base_url=script.base_url), ask())
    assert script.requests[0]["headers"]["authorization"] == "Bearer none"  # no key that the file does not name


# ---------------------------------------------------------------- Azure

TOKEN = "ey-token-0123456789abcdef"
AZURE = {"deployment": "my-gpt", "api_version": "2024-10-21"}


def azured(script: Script, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Any]:
    """A request to a deployment at the script, which the environment names as Azure's endpoint."""
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", script.base_url.removesuffix("/v1") + "/")
    good(opened(client="sdk", azure=AZURE, **settings), ask(indices=(0, 1)))
    return script.requests[-1]


@pytest.mark.parametrize(
    ("environment", "settings", "header"),
    [
        ({"AZURE_OPENAI_API_KEY": KEY}, {}, {"api-key": KEY}),
        ({"AZURE_OPENAI_AD_TOKEN": TOKEN}, {}, {"authorization": f"Bearer {TOKEN}"}),
        ({"AZURE_OPENAI_API_KEY": KEY, "AZURE_OPENAI_AD_TOKEN": TOKEN}, {}, {"authorization": f"Bearer {TOKEN}"}),
        ({"MINE": KEY, "AZURE_OPENAI_AD_TOKEN": TOKEN}, {"api_key_env": "MINE"}, {"api-key": KEY}),
        ({"MINE": KEY}, {"headers": {"api-key": "${MINE}"}}, {"api-key": KEY}),
    ],
)
def test_azure_gets_its_path_its_version_and_one_credential(
    environment: dict[str, str], settings: dict[str, Any], header: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with scripted([Answer(completion("x", "y"))]) as script:
        request = azured(script, monkeypatch, **settings)
    assert request["path"] == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert {k: v for k, v in request["headers"].items() if k in ("api-key", "authorization")} == header


def test_a_deployment_is_the_same_model_for_both_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "https://name.openai.azure.com"
    sdk = opened(client="sdk", azure={**AZURE, "endpoint": f"{endpoint}/"})
    lean = opened(base_url=f"{endpoint}/openai/deployments/my-gpt", query={"api-version": "2024-10-21"})
    assert sdk.identity == lean.identity
    again = OpenAIModel.model_validate(sdk.spec.model_dump(mode="json", exclude_none=True))
    assert again == sdk.spec  # as the run folder's pipeline.yaml keeps it


SIGNED_IN = """\
class DefaultAzureCredential: ...
def get_bearer_token_provider(credential, scope):
    assert isinstance(credential, DefaultAzureCredential) and scope == "https://cognitiveservices.azure.com/.default"
    def provider():
        {does}
    return provider
"""


def identity_package(folder: Path, does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for azure-identity, as far as it is used."""
    (folder / "azure").mkdir()
    (folder / "azure" / "identity.py").write_text(SIGNED_IN.format(does=does))
    monkeypatch.syspath_prepend(str(folder))
    for name in ("azure", "azure.identity"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def bad_at_once(engine: OpenAIEngine, request: Request) -> Exception:
    """The error of one try."""

    async def go() -> Any:
        try:
            return await engine.post(request, engine.urls[0])
        finally:
            await engine.close()

    (error,) = asyncio.run(go())
    assert isinstance(error, Exception)
    return error


def test_without_a_key_it_signs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity_package(tmp_path, f"return {TOKEN!r}", monkeypatch)
    repeats = Answer(lambda _: completion(f"I was sent {TOKEN}", "y"))
    with scripted([repeats]) as script:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", script.base_url.removesuffix("/v1"))
        reply, _ = good(opened(client="sdk", azure=AZURE), ask(indices=(0, 1)))
    assert script.requests[0]["headers"]["authorization"] == f"Bearer {TOKEN}"
    assert reply.text == "I was sent ***"  # a token that came later is hidden as any key


def test_a_sign_in_that_fails_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity_package(tmp_path, "raise OSError('no account\\nsecond line')", monkeypatch)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1")
    engine = opened(client="sdk", azure=AZURE)
    error = bad_at_once(engine, ask())
    assert "the sign-in at Azure failed: no account. Fix: sign in (`az login`)" in str(error)


def test_without_a_key_or_azure_identity_a_sentence_names_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"neither AZURE_OPENAI_API_KEY nor .*pip install azure-identity"):
        bad_at_once(opened(client="sdk", azure=AZURE), ask())


def test_no_credential_of_azure_goes_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    with scripted([Answer(completion("x"))]) as script:
        elsewhere = {**AZURE, "endpoint": script.base_url.removesuffix("/v1")}
        with pytest.raises(InputError, match="no address of Azure's"):
            bad_at_once(opened(client="sdk", azure=elsewhere), ask())
        assert not script.requests
        good(opened(client="sdk", azure=elsewhere, api_key_env="AZURE_OPENAI_API_KEY"), ask())
    assert script.requests[0]["headers"]["api-key"] == KEY and TOKEN not in str(script.requests)


@pytest.mark.parametrize(
    ("endpoint", "trusted"),
    [
        ("https://name.openai.azure.com", True),
        ("https://name.cognitiveservices.azure.us", True),
        ("https://name.services.ai.azure.com", True),
        ("http://name.openai.azure.com", False),  # where nothing is encrypted
        ("https://somebody.westeurope.cloudapp.azure.com", False),  # a machine that anybody may rent
        ("https://openai.azure.com.example.org", False),
    ],
)
def test_only_azure_s_own_services_get_its_credentials(
    endpoint: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    spec = opened(client="sdk", azure={**AZURE, "endpoint": endpoint}).spec
    assert spec.azure is not None and spec.azure.trusted is trusted
    assert spec.key_variable == ("AZURE_OPENAI_API_KEY" if trusted else None)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("client: sdk, azure: {deployment: d, api_version: v}", "state `endpoint`, or set AZURE_OPENAI_ENDPOINT"),
        ("client: sdk, azure: {deployment: d, endpoint: 'https://a.b'}", "state `api_version`, or set OPENAI_API"),
        (
            "client: sdk, azure: {deployment: d/e, endpoint: 'https://a.b', api_version: v}",
            "`models.j.azure.deployment`",
        ),
        (
            "client: sdk, azure: {deployment: d, endpoint: 'https://u:p@a.b', api_version: v}",
            "without user name or key",
        ),
        ("azure: {deployment: d, endpoint: 'https://a.b', api_version: v}", "`azure` needs `client: sdk`"),
        (
            "client: sdk, base_url: 'http://c/v1', azure: {deployment: d, endpoint: 'https://a.b', api_version: v}",
            "give either `azure` or `base_url`",
        ),
        ("client: skd", "expected 'lean' or 'sdk'"),
    ],
)
def test_a_wrong_setting_is_a_sentence(model: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        f"name: p\nmodels:\n  j: {{engine: openai, model: m, {model}}}\nstages:\n  - prompts: {{path: p.jsonl}}\n"
    )
    done = rlaif(tmp_path, "plan", "p.yaml")
    assert done.code == 2 and said in done.err and done.err.startswith("error: p.yaml:3: "), done.err
    assert "u:p" not in done.err


def test_a_wrong_base_url_of_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "nowhere")
    (tmp_path / "p.yaml").write_text(
        "name: p\nmodels:\n  j: {engine: openai, model: m, client: sdk}\nstages:\n  - prompts: {path: p.jsonl}\n"
    )
    done = rlaif(tmp_path, "plan", "p.yaml")
    assert done.code == 2 and "OPENAI_BASE_URL: expected a URL such as https://api.openai.com/v1" in done.err


# ---------------------------------------------------------------- what loads it


@pytest.mark.parametrize(("client", "loads"), [("lean", False), ("sdk", True)])
def test_only_a_run_with_it_loads_the_package(client: str, loads: bool, tmp_path: Path) -> None:
    engines = {name: Echo(name) for name in ("one", "two", "judge")}
    with serve(engines) as url:
        write_project(tmp_path, url, prompts=2)
        code = (
            "import sys; from rlaif.cli import main\n"
            f"sys.argv[1:] = ['run', 'echo.yaml', 'models.one.client={client}']\n"
            "try: main()\n"
            "finally: print('openai' in sys.modules, 'httpx2' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{loads} {loads}"
