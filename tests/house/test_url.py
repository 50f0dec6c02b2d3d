"""URLs name plugins and carry their options; what is wrong with one is said without its password."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta

from owm_outbox import URL, ConfigurationError
from owm_outbox.plugins import open_outbox, open_sink
from owm_outbox.url import redacted, suggestion

SECRET = "hunter2"  # noqa: S105 - what must not be shown


def _refusal(url: str, **types: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        URL(url).options(**types)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("redis://host:6379/0", ("redis", None, None, "host", 6379, "/0")),
        ("rediss://user:p%40ss%2Fword@host/0?a=1", ("rediss", "user", "p@ss/word", "host", None, "/0")),
        ("redis://:p@ss@host", ("redis", "", "p@ss", "host", None, "")),
        ("redis://[::1]:6379/0", ("redis", None, None, "::1", 6379, "/0")),
        ("sqlite:////tmp/x.db", ("sqlite", None, None, None, None, "//tmp/x.db")),
        ("sqlite:///x%20y.db", ("sqlite", None, None, None, None, "/x y.db")),
        ("jsonl:-", ("jsonl", None, None, None, None, "-")),
        ("jsonl:/var/aufgaben-ü.jsonl", ("jsonl", None, None, None, None, "/var/aufgaben-ü.jsonl")),
        ("memory:", ("memory", None, None, None, None, "")),
        ("carrier-pigeon:/var/loft", ("carrier-pigeon", None, None, None, None, "/var/loft")),
    ],
)
def test_a_url_is_taken_apart(text: str, parts: tuple[object, ...]) -> None:
    """The parts of a URL are found and percent-decoded."""
    url = URL(text)
    assert (url.scheme, url.username, url.password, url.hostname, url.port, url.path) == parts


@pytest.mark.parametrize("text", ["", "tasks.db", "/var/tasks.db", "//host/0", "?stream=s"])
def test_a_url_without_a_scheme_says_how_to_write_it(text: str) -> None:
    """Text without a scheme is refused with examples of what to write."""
    with pytest.raises(ConfigurationError, match=r"has no scheme.*sqlite:////.*redis://") as caught:
        URL(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["redis://[::1/0", "redis://host:65536/0", "redis://host:port/0", "redis://host:6379:0"]
)
def test_what_is_no_url_is_refused(text: str) -> None:
    """A bad host or port is a configuration error that names the scheme."""
    with pytest.raises(ConfigurationError, match=r"redis:.* is not a URL"):
        URL(text)


@pytest.mark.parametrize("text", ["sqlite:///tasks#1.db", "jsonl:/tmp/tasks#1.jsonl", "redis://host/0?stream=tasks#1"])
def test_nothing_of_a_url_is_left_out_silently(text: str) -> None:
    """A # would begin a fragment, which no plugin looks at, so it is refused with what to write instead."""
    with pytest.raises(ConfigurationError, match="%23"):
        URL(text).options(stream=str)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("nats://h1:4222,h2:4223/STREAM?a=b@c", [("h1", 4222), ("h2", 4223)]),
        ("redis+sentinel://u:p%40s@h1,[::1]:26379,h3/0", [("h1", None), ("::1", 26379), ("h3", None)]),
        ("redis://host", [("host", None)]),
    ],
)
def test_a_url_may_have_several_hosts(text: str, hosts: list[tuple[str, int | None]]) -> None:
    """Hosts are divided by commas, and each has a port of its own, or none."""
    assert URL(text).hosts == hosts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nats://h1:4222,", "no name"),
        ("nats://h1:4222,,h2:4222/S", "no name"),
        (f"nats://h1:4222,h2:{SECRET}/S", "a port that is not valid"),
        ("nats://h1:4222,h2:65536", "a port that is not valid"),
        ("nats://user:hunter2@h1:4222,:4222", "no name"),
    ],
)
def test_each_of_several_hosts_must_be_one(text: str, says: str) -> None:
    """A host without a name or with a bad port is refused, without showing what may be a password."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        URL(text).hosts  # noqa: B018 - it raises
    assert SECRET not in str(caught.value)


def test_options_are_converted_to_their_types() -> None:
    """Each option that the URL gives comes in the type asked for, percent-decoded; the others are left out."""
    url = URL("pigeon:/loft?name=Stra%C3%9Fe+7&birds=3&speed=1.5&rain=true&mood=brisk&bare=")
    assert url.options(
        name=str, birds=int, speed=float, rain=bool, mood=Literal["brisk", "calm"], bare=str, feed=str
    ) == {"name": "Straße 7", "birds": 3, "speed": 1.5, "rain": True, "mood": "brisk", "bare": ""}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("bird=3", "unknown option 'bird' pigeon: did you mean 'birds'?"),
        ("colour=red", "unknown option 'colour' known: birds, mood"),
        ("birds=3&birds=4", "'birds' twice pigeon:"),
        ("birds=three", "birds='three' pigeon: int"),
        ("birds=0", "birds='0' >= 1"),
        ("birds=", "birds=''"),
        ("birds=1.5", "birds='1.5'"),
        ("mood=grim", "mood='grim' brisk calm"),
    ],
)
def test_a_bad_option_is_named(query: str, words: str) -> None:
    """An option that is unknown, comes twice or does not convert is refused with its name and what is possible."""
    message = _refusal(f"pigeon:/loft?{query}", birds=Annotated[int, Meta(ge=1)], mood=Literal["brisk", "calm"])
    for word in words.split():
        assert word in message


def test_a_plugin_without_options_says_so() -> None:
    """If there are none, an option is refused with just that."""
    assert "it takes none" in _refusal("pigeon:?bird=1")


def test_the_nearest_name_is_guessed_or_all_are_listed() -> None:
    """A name that is close to a known one is taken for it; else the known ones are listed in order."""
    assert suggestion("straem", ["maxlen", "stream"]) == "did you mean 'stream'?"
    assert suggestion("colour", ["stream", "maxlen"]) == "known: maxlen, stream"
    assert suggestion("colour", []) == "it takes none"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("redis://u:p%40s@host:6379/0?stream=s&db=1", "redis://u:p%40s@host:6379/0?db=1"),
        ("redis://host/0?stream=s", "redis://host/0"),
        ("redis://host?password=p%26s&stream=s", "redis://host?password=p%26s"),
    ],
)
def test_options_can_be_taken_out_for_a_client(text: str, left: str) -> None:
    """What is left without our options is what a client of its own needs, its password included."""
    assert URL(text).without_options("stream") == left


@pytest.mark.parametrize(
    "text",
    [
        "redis://host:6379/0?stream=s&maxlen=5",
        "redis://user@host/0",
        "redis://[::1]:6379/0",
        "redis://one:6379,two:6380/0",
        "nats://[::1]:4222,[::2]:4222,three:4222/TASKS?subject=tasks",
        "nats://host:4222/TASKS?subject=tasks&creds=/home/me@work/creds",
        "redis://host/0?stream=a@b:c",
        "redis+cluster://h1:7000,h2:7001,[::1]:7002/0?stream=a@b",
        "nats://h1:4222,h2:4222/STREAM",
        "nats://h1,h2:4222/STREAM",
        "sqlite:////tmp/x.db",
        "sqlite:///home/me@work/x.db?timeout=1",
        "jsonl:-",
        "jsonl:/tmp/a%20b.jsonl",
        "http://host:8000/api",
        "",
    ],
)
def test_a_url_without_a_password_is_shown_as_it_is(text: str) -> None:
    """Masking changes nothing where there is nothing to mask."""
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"redis://user:{SECRET}@host:6379/0", "redis://user:***@host:6379/0"),
        (f"redis://:{SECRET}@host", "redis://:***@host"),
        ("redis://user:hunt%65r2@host/0", "redis://user:***@host/0"),
        (f"redis://user:me@{SECRET}@host/0", "redis://user:***@host/0"),
        (f"redis://host/0?password={SECRET}&stream=s", "redis://host/0?password=***&stream=s"),
        (f"redis://host/0?stream=s&PASSWORD={SECRET}", "redis://host/0?stream=s&PASSWORD=***"),
        (f"rediss://host/0?ssl_password={SECRET}", "rediss://host/0?ssl_password=***"),
        (f"http://user:{SECRET}@host/api", "http://user:***@host/api"),
        (f"nats://u:{SECRET}@h1:4222,h2:4222/S", "nats://u:***@h1:4222,h2:4222/S"),
        (f"nats://h1:{SECRET},h2:4222/S", "nats://h1:***"),
        (f"nats://h1:4222,{SECRET}/S", "nats://h1:***"),
        (
            f"redis+sentinel://h1:1,h2:2/0?sentinel_password={SECRET}",
            "redis+sentinel://h1:1,h2:2/0?sentinel_password=***",
        ),
        (f"nats://{SECRET}@host:4222/TASKS", "nats://***@host:4222/TASKS"),
        (f"tls://{SECRET}@one:4222,two:4222/TASKS", "tls://***@one:4222,two:4222/TASKS"),
        (f"nats://{SECRET}/x@host/TASKS", "nats://***@host/TASKS"),
        (f"nats://user:{SECRET}@one:4222,two:4222/TASKS", "nats://user:***@one:4222,two:4222/TASKS"),
    ],
)
def test_a_password_is_masked_and_the_rest_is_shown(text: str, shown: str) -> None:
    """A password in the user's part or in an option becomes ***, and nothing else changes."""
    assert redacted(text) == str(URL(text)) == repr(URL(text)) == shown


MARK = "Xq7"


def _passwords(*, without: str = "") -> st.SearchStrategy[str]:
    """Make passwords of which every second piece is the mark, so that no part of one can be shown unseen."""
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=without), max_size=8)
    return st.lists(text, min_size=1, max_size=4).map(lambda pieces: MARK + MARK.join(pieces) + MARK)


def _forms(texts: list[str], passwords: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda text, password: text.replace("PASSWORD", password), st.sampled_from(texts), passwords)


USERINFO = [
    "redis://user:PASSWORD@host:6379/0?stream=s",
    "redis://:PASSWORD@host",
    "redis://:PASSWORD@host:port/0",
    "redis://:PASSWORD@[::1/0",
    "nats://user:PASSWORD@h1:4222,h2:4222/S",
    "http://user:PASSWORD@host/cities/",
    "//user:PASSWORD@host",
    "user:PASSWORD@host:6379/0",
    "redis:user:PASSWORD@host",
    "redis:/user:PASSWORD@host",
]
OPTION = [
    "redis://host/0?password=PASSWORD&stream=s",
    "redis://host/0?stream=s&PassWord=PASSWORD",
    "redis://host/0?pass%77ord=PASSWORD",
    "redis://host/0?pasword=PASSWORD",
    "redis://host:port/0?ssl_password=PASSWORD",
    "?password=PASSWORD",
]


def _complaint(text: str) -> str:
    try:
        URL(text).options()
    except ConfigurationError as error:
        return str(error)
    return ""


@pytest.mark.slow
@given(
    st.one_of(
        _forms(USERINFO, _passwords().map(lambda password: quote(password, safe=""))),
        # Raw, as people paste them. With @ and one of /?# in one password nobody could tell where it ends.
        _forms(USERINFO, _passwords(without="@")),
        _forms(USERINFO, _passwords(without="/?#")),
        _forms(["redis://host:PASSWORD/0"], _passwords(without="@")),
        _forms(OPTION, _passwords().map(quote_plus)),
        _forms(OPTION, _passwords(without="&")),
    )
)
@example(f"user:{MARK}:{MARK}@host:6379/0")  # not a scheme, a user and a password
@example(f"redis://host:port/0?ssl_password={MARK}@{MARK}")  # not a user, and a password up to the @
def test_no_part_of_a_password_is_ever_shown(text: str) -> None:
    """Whatever a password holds, and however wrong the URL around it is, nothing of it is in what is shown."""
    assert MARK not in redacted(text)
    assert MARK not in _complaint(text)


@pytest.mark.parametrize(
    "text",
    [
        f"redis:user:{SECRET}@host/0",
        f"redis:/user:{SECRET}@host/0",
        f"redis://user:{SECRET}/x@host/0",
        f"redis://user:{SECRET}?x@host/0",
        f"redis://user:{SECRET}#x@host/0",
        f"redis://user:{SECRET}℀@host/0",
        f"redis://host:{SECRET}/0",
        f"redis://user:{SECRET}@host/zero",
        f"redis://user:{SECRET}@host/0?straem=s",
        f"redis://user:{SECRET}@host/0?maxlen=many",
        f"redis://host/0?pasword={SECRET}",
        f"redis://host/0?password={SECRET}&password={SECRET}",
        f"jsonl://user:{SECRET}@host/x",
        f"nowhere://user:{SECRET}@host",
    ],
)
def test_a_sink_is_refused_without_showing_the_password(text: str) -> None:
    """Nor do the sinks that ship with us show it when they refuse a URL."""
    with pytest.raises(ConfigurationError) as caught:
        open_sink(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("redis:///0", "no host redis://host:6379/0"),
        ("redis://host/0/1", "number of a database"),
        ("redis://host/0?maxlen=-1", "maxlen='-1' >= 0"),
        ("redis://host/0?overflow=drop", "overflow='drop' hold trim"),
        ("redis://host/0?retries=101", "retries='101' <= 100"),
        ("redis://host/0?backoff_base=0", "backoff_base='0'"),
        ("redis://host/0?stream=", "stream=''"),
        ("redis://host/0?socket_timeout=soon", "socket_timeout='soon' float"),
        ("redis://host/0?protocol=9", "protocol='9'"),
        ("redis://host/0?ssl_ca_certs=ca.pem", "ssl_ca_certs rediss"),
        ("jsonl:", "no file jsonl:-"),
        ("jsonl:/tmp", "jsonl:/tmp file"),
        ("jsonl:tasks.jsonl?mode=w", "'mode' none"),
        ("jsonl:tasks%00.jsonl", "jsonl:tasks"),
    ],
)
def test_a_sink_says_what_is_wrong_with_its_url(text: str, words: str) -> None:
    """What a URL asks of a sink that it cannot do is refused with the option's name and what is possible."""
    with pytest.raises(ConfigurationError) as caught:
        open_sink(text)
    for word in words.split():
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("redis://host", "no outbox 'redis' known: memory, sqlite"),
        ("sqlite://tasks.db", "sqlite://tasks.db no file sqlite:///relative/path"),
        ("sqlite:///", "no file sqlite:///relative/path"),
        ("sqlite:///tasks.db?timeout=long", "timeout='long' float"),
        ("sqlite:///tasks.db?timeout=-1", "timeout='-1' >= 0"),
        ("sqlite:///tasks%00.db", "tasks"),
        ("memory:?size=3", "'size' none"),
    ],
)
def test_an_outbox_says_what_is_wrong_with_its_url(
    text: str, words: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a URL asks of an outbox that it cannot do is refused with the option's name and what is possible."""
    monkeypatch.chdir(str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        open_outbox(text)
    for word in words.split():
        assert word in str(caught.value)
