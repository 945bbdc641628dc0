"""What a pipeline file says of its models: which engine runs each, and how it is sampled."""

from __future__ import annotations

import os
import re
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from rlaif.config.document import NAME, Settings
from rlaif.records import Sampling, canonical


class SamplingSettings(Settings):
    """What a model or a stage says about sampling; unset fields are filled by the next outer level.

    `defaults` are those of a kind of stage. They stand below what anyone wrote, each field by itself.
    """

    defaults: ClassVar[dict[str, Any]] = {}

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, gt=0, le=1_000_000)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_another_kind(cls, value: Any) -> Any:
        return value.model_dump() if isinstance(value, SamplingSettings) else value

    def over(self, *outer: SamplingSettings) -> dict[str, Any]:
        """Each field as it is set here, or else in the nearest of `outer`, or else by this kind of stage."""
        merged: dict[str, Any] = {}
        levels = (*reversed(outer), self)
        for level in levels:
            merged |= level.defaults
        for level in levels:
            merged |= level.model_dump(include=set(SamplingSettings.model_fields), exclude_none=True)
        return merged

    def resolved(self, seed: int, *outer: SamplingSettings) -> Sampling:
        """The sampling of a call. Equal settings give the same object, so that what is derived from it is cached."""
        return _resolved(self, seed, outer)


@lru_cache(maxsize=256)
def _resolved(settings: SamplingSettings, seed: int, outer: tuple[SamplingSettings, ...]) -> Sampling:
    sampling = Sampling(seed=seed, **settings.over(*outer))
    return _first_equal(sampling, frozenset(sampling.model_fields_set))


@lru_cache(maxsize=256)
def _first_equal(sampling: Sampling, stated: frozenset[str]) -> Sampling:
    """One object for equal settings, of which the same were stated: a server is sent only those."""
    return sampling


class JudgeSampling(SamplingSettings):
    """Judges sample greedily, with enough tokens to explain a rating."""

    defaults = {"temperature": 0.0, "max_tokens": 1024}


class RevisionSampling(SamplingSettings):
    """Critiques and revisions are sampled at temperature 1, as in the paper, with enough tokens to explain."""

    defaults = {"temperature": 1.0, "max_tokens": 1024}


class MeasureSampling(SamplingSettings):
    """At temperature 1 the samples are the model's own distribution, which is what a KL divergence is about."""

    defaults = {"temperature": 1.0}


Thinking = Literal["strip", "keep", "fail"]


class Model(Settings):
    """What every engine's settings have. A subclass names its engine in `engine`, and has `sampling`."""

    thinking: Thinking = "strip"  # what becomes of a reasoning model's thinking; `show` shows it in any case

    @property
    def stands_for(self) -> str:
        """What a data set card says that the model is."""
        return type(self).__name__

    @property
    def called(self) -> str:
        """What a person calls the model."""
        return self.stands_for


class LocalModel(Model):
    """A model whose weights are here. `path` is a local or bundled folder, `hub` an id on the Hugging Face hub.

    `adapter` is the folder of a LoRA adapter over it. An adapter that records its base may be the `path` itself.
    """

    path: str | None = None
    hub: str | None = None
    revision: str | None = None
    adapter: str | None = None
    sampling: SamplingSettings = SamplingSettings()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either `path` (a folder) or `hub` (an id on the hub)")
        return self

    @property
    def stands_for(self) -> str:
        base = self.path or self.hub or ""
        base = Path(base).name if Path(base).is_absolute() else base
        return f"{base} with {Path(self.adapter).name}" if self.adapter else base

    @property
    def called(self) -> str:
        return Path(self.adapter or self.path or self.hub or "").name


class TransformersModel(LocalModel):
    """A model in this process, run by transformers."""

    engine: Literal["transformers"]
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    batch_size: int = Field(default=256, gt=0)


class VLLMModel(LocalModel):
    """A model in this process, run by vLLM. `options` go to `vllm.LLM` as they are (max_model_len, ...)."""

    engine: Literal["vllm"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_size: int = Field(default=1024, gt=0)  # calls given to vLLM at a time; vLLM batches them itself
    options: dict[str, Any] = {}


class TokenPrice(Settings):
    """Currency units per million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    batch: float = Field(default=1, ge=0, le=1)  # the share of these that a call in a batch costs


class RateLimits(Settings):
    """What a server's owner allows in a minute. Without limits the engine adapts to what the server accepts."""

    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)


def plain_url(url: Any, example: str) -> str:
    """An address as it is kept, without a slash at its end. Raises ValueError, which does not show it."""
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    odd = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
    if odd or "@" in parts.netloc or re.search(r"[?#\s]", url):
        raise ValueError(
            f"expected a URL such as {example}, without user name or key, `?` or `#`: it is saved with the run"
        )
    return str(url).rstrip("/")


class Azure(Settings):
    """A deployment of Azure OpenAI. What the file leaves out comes from the `openai` package's variables."""

    deployment: str = Field(pattern=NAME)
    endpoint: str
    api_version: str = Field(min_length=1, max_length=100)

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        for key, variable in (("endpoint", AZURE_ENDPOINT), ("api_version", "OPENAI_API_VERSION")):
            if filled.get(key) is None:
                if not (value := os.environ.get(variable, "").strip()):
                    raise ValueError(f"state `{key}`, or set {variable}")
                filled[key] = value
        if isinstance(filled["api_version"], date):  # as YAML reads one without quotes
            filled["api_version"] = filled["api_version"].isoformat()
        return filled

    @field_validator("endpoint", mode="before")  # before: pydantic's own error would show the value
    @classmethod
    def _is_url(cls, given: Any) -> str:
        return plain_url(given, "https://NAME.openai.azure.com")

    @property
    def base_url(self) -> str:
        """The address under which the package finds the deployment."""
        return f"{self.endpoint}/openai/deployments/{self.deployment}"

    @property
    def trusted(self) -> bool:
        """Whether the endpoint may get the credentials of Azure that the environment holds: it is Azure's own, or the
        environment names it."""
        named, parts = os.environ.get(AZURE_ENDPOINT, "").strip().rstrip("/"), urlsplit(self.endpoint)
        return self.endpoint == named or (parts.scheme == "https" and (parts.hostname or "").endswith(AZURE_HOSTS))


AZURE_ENDPOINT = "AZURE_OPENAI_ENDPOINT"
# Of its services for models alone: under `cloudapp.azure.com` are the machines of whoever rents one.
AZURE_HOSTS = tuple(
    f".{service}.azure.{cloud}"
    for service in ("openai", "cognitiveservices", "services.ai")
    for cloud in ("com", "us", "cn")
)
OPENAI = "https://api.openai.com"
# What a request may leave out, and what only this program may set: the others would change what an answer is read as.
Omissible = Literal["seed", "n", "top_p", "temperature", "max_tokens", "stop", "response_format"]
RESERVED = frozenset({"model", "messages", "n", "seed", "stream", "stop", "logprobs", "top_logprobs"})
RESERVED_HEADERS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})
# Headers that hold a secret, by a word in their names: its value comes from the environment.
_CREDENTIAL = re.compile(r"auth|key|token|secret|cookie|password|signature", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
MOST_EXTRA = 100_000  # characters of `extra_body`, which goes with every request


class OpenAIModel(Model):
    """A model behind an OpenAI-compatible server. Its key, if it needs one, comes from the environment.

    Several base URLs are replicas: servers of the same model, whose answers count as the same. Calls are kept under the
    first of them, so that replicas may come and go.
    """

    engine: Literal["openai"]
    client: Literal["lean", "sdk"] = "lean"  # what sends its requests; never a part of a call's key
    azure: Azure | None = None
    model: str
    base_url: str | tuple[str, ...] = f"{OPENAI}/v1"
    api_key_env: str | None = None  # the variable's name; the key itself is never in a file
    revision: str | None = None
    identity: str | None = None  # declares that an endpoint which moved is still the same model
    concurrency: int = Field(default=256, gt=0)  # most requests in flight for each server; the engine adapts below it
    limits: RateLimits | None = None
    timeout: float = Field(default=600, gt=0, le=86_400)  # seconds for one request
    retries: int = Field(default=6, ge=0)
    price: TokenPrice | None = None
    sampling: SamplingSettings = SamplingSettings()
    thinking_tokens: int = Field(default=0, ge=0, le=1_000_000)  # allowed for thinking, beyond `max_tokens`
    omit: tuple[Omissible, ...] = ()  # never sent
    extra_body: dict[str, Any] = {}  # sent with every request, as it is
    headers: dict[str, str] = {}  # sent with every request; `${NAME}` is an environment variable
    query: dict[str, str] = {}  # as `headers`, in the address
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system: Literal["own", "fold"] = "own"  # a system message is a message of its own, or begins the user's

    @model_validator(mode="before")
    @classmethod
    def _of_the_package(cls, given: Any) -> Any:
        """With `client: sdk`, what the package's variables say of the server is as if the file said it."""
        if not isinstance(given, dict):
            return given
        sdk, azure = given.get("client") == "sdk", given.get("azure")
        if azure is not None and not sdk:
            raise ValueError("`azure` needs `client: sdk`")
        if azure is not None:
            try:
                base_url = Azure.model_validate(azure).base_url
            except ValidationError:
                return given  # its own field says what is wrong
            if given.get("base_url", base_url) != base_url:
                raise ValueError("give either `azure` or `base_url`")
            return given | {"base_url": base_url}
        url = os.environ.get("OPENAI_BASE_URL", "").strip()
        if sdk and url and given.get("base_url") is None:
            try:
                return {"api_key_env": "OPENAI_API_KEY"} | given | {"base_url": plain_url(url, f"{OPENAI}/v1")}
            except ValueError as error:
                raise ValueError(f"OPENAI_BASE_URL: {error}") from None
        return given

    @field_validator("extra_body")
    @classmethod
    def _is_extra(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := RESERVED & given.keys():
            raise ValueError(f"`{min(taken)}` is set by this program; only other fields may be given")
        try:
            size = len(canonical(given))
        except (TypeError, ValueError, RecursionError):
            raise ValueError("expected what JSON can hold") from None
        if size > MOST_EXTRA:
            raise ValueError(f"expected at most {MOST_EXTRA:,} characters")
        return given

    @field_validator("headers", "query", mode="before")  # before: pydantic's own error would show the value
    @classmethod
    def _are_texts(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise ValueError("expected names and values")
        plain = {}
        for name, value in given.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(name, str) or not isinstance(value, str):
                raise ValueError("expected texts; write a value such as a date in quotes")
            if not (value.isascii() and value.isprintable()):
                raise ValueError(f"the value of {name[:100]!r} holds invalid characters")
            if _CREDENTIAL.search(name) and not VARIABLE.search(value):
                raise ValueError(f"{name[:100]!r} may hold a secret: give its value as ${{NAME}}, a variable's name")
            plain[name] = value
        return plain

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if not _HEADER.fullmatch(name) or name.lower() in RESERVED_HEADERS:
                raise ValueError(f"{name[:100]!r} is no header that may be set")
        return given

    @field_validator("base_url", mode="before")  # before: pydantic's own error would show the value
    @classmethod
    def _are_urls(cls, given: Any) -> str | tuple[str, ...]:
        urls = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()
        if not urls or not all(isinstance(url, str) for url in urls):
            raise ValueError("expected a URL, or a list of URLs")
        plain = tuple(plain_url(url, "http://127.0.0.1:8000/v1") for url in urls)
        if len(set(plain)) < len(plain):
            raise ValueError("a URL is given twice")
        return plain[0] if isinstance(given, str) else plain

    @field_validator("api_key_env", mode="before")
    @classmethod
    def _is_a_variable(cls, variable: Any) -> str | None:
        if variable is None:
            return None
        if (
            not isinstance(variable, str)
            or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable)
            or (_like_a_key(variable) and variable not in os.environ)
        ):
            raise ValueError("expected the name of an environment variable, never the key itself")
        return variable

    @property
    def stands_for(self) -> str:
        return f"{self.model}{f' at {self.revision}' if self.revision else ''}"

    @property
    def called(self) -> str:
        return self.model

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key: the one named, or that of OpenAI or Azure for themselves alone.

        Any other server gets a key only if the pipeline file names its variable, so that no key goes to a wrong server.
        """
        if self.azure is not None:
            return self.api_key_env or ("AZURE_OPENAI_API_KEY" if self.azure.trusted else None)
        hosts = {f"{parts.scheme}://{parts.hostname}" for parts in map(urlsplit, self.base_urls)}
        return self.api_key_env or ("OPENAI_API_KEY" if hosts == {OPENAI} else None)

    @property
    def base_urls(self) -> tuple[str, ...]:
        return (self.base_url,) if isinstance(self.base_url, str) else self.base_url


# How keys begin that are also names: of Hugging Face, Groq, GitHub, Google, AWS, ...
_KEY_BEGINS = re.compile(r"(?:hf|gsk|sk|pk|gh[a-z]|xai|nvapi|r8)_|AIza|AKIA")


def _like_a_key(variable: str) -> bool:
    """Whether a variable's name may be a key itself: a long part of letters and digits mixed, or a key's beginning."""
    long = [part for part in variable.split("_") if len(part) >= 16]
    return any(
        _KEY_BEGINS.match(variable) or (len(re.findall(r"[0-9]+", part)) >= 2 and re.search(r"[A-Za-z]", part))
        for part in long
    )


ModelSpec = TransformersModel | OpenAIModel | VLLMModel
ENGINES: dict[str, type[TransformersModel] | type[OpenAIModel] | type[VLLMModel]] = {
    "transformers": TransformersModel,
    "openai": OpenAIModel,
    "vllm": VLLMModel,
}
