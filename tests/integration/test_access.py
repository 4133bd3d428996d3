"""Who may call which route of the service, with which token and from where."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import urllib3
from fastapi import routing
from starlette.routing import Mount, Route

from clara_results.api.access import OPEN, RULES, As, GuardedRoute, Rule
from clara_results.api.app import create_app
from clara_results.client import ResultsClient
from clara_results.domain.scopes import EVERYTHING, PLAIN
from clara_results.domain.tasks import State
from clara_results.errors import Refused
from clara_results.service import access
from clara_results.service.access import Access, Caller
from clara_results.store import tokens
from clara_results.store.database import Database
from clara_results.wire.tasks import Registration, Release, SuccessReport
from tests.conftest import eventually
from tests.integration.conftest import FakeClock

if TYPE_CHECKING:
    from tests.integration.conftest import Answer, LocalService, TokenMaker

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
OTHER_ADDRESS = "127.0.0.2"
"""Loopback too, but not where other calls come from."""
SCOPES = (*PLAIN, "agent:clarascu", "agent:other", "agent:*")
IMPLIED = {"admin": {"admin", "operate", "read", "register"}, "operate": {"operate", "read"}}
OPEN_PATHS = {"/openapi.json", "/docs/assets", "/static"}
"""Served by the framework itself: the contract and the assets of its page."""


@pytest.fixture
def revoke(beside: Database, local: "LocalService") -> Callable[[str], None]:
    def end(name: str) -> None:
        beside.write(lambda tx: access.revoke(tx, name, local.clock.now())).result()

    return end


def call(
    local: "LocalService", token: str | None, method: str = "GET", path: str = "/api/tasks"
) -> "Answer":
    return local.call(method, path, headers=bearer(token))


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


# The table


def test_every_route_is_in_the_table_and_held_to_it() -> None:
    app = create_app(lambda: pytest.fail("not opened"), lambda _: pytest.fail("not tested"))
    found = set()
    for route in routing.iter_route_contexts(app.routes):
        if route.path in OPEN_PATHS:
            assert isinstance(route.original_route, Mount | Route)
            continue
        assert isinstance(route.original_route, GuardedRoute), f"{route.path} is not guarded"
        found |= {(method, route.path) for method in route.methods or ()}
    assert found == set(RULES)


def test_a_route_that_is_not_in_the_table_can_not_be_made() -> None:
    router = routing.APIRouter(route_class=GuardedRoute)
    with pytest.raises(LookupError, match=r"GET /api/new: say in .*RULES who may call it"):
        router.get("/api/new")(lambda: None)


def test_no_route_that_changes_anything_is_open() -> None:
    assert {path for (method, path), rule in RULES.items() if rule == OPEN} == {
        "/health/live", "/health/ready", "/health/status", "/docs", "/login", "/logout",
    }  # fmt: skip
    changing = {path for (method, path), rule in RULES.items() if rule == OPEN and method != "GET"}
    assert changing == {"/login", "/logout"}  # they change a cookie


def test_the_documented_table_is_this_one() -> None:
    agents = {
        As.ANY: "`agent:NAME` of any agent",
        As.NAMED: "`agent:NAME` of the agent named",
        As.HOLDER: "`agent:NAME` of the task's agent",
    }
    rows = []
    for (method, path), rule in RULES.items():
        who = [f"`{scope}`" for scope in rule.scopes] + [agents[a] for a in As if a is rule.agent]
        call = f"{method} {path.replace(':path}', '}')}"
        rows.append(f"| `{call}` | {' or '.join(who) or 'everyone'} |")
    documented = re.findall(r"^\| `[A-Z]+ /.*$", DOCUMENT.read_text(), re.MULTILINE)
    assert documented == rows


def is_page(route: str) -> bool:
    """Say whether a route is a page of the console's, or something that is done on one."""
    return not route.startswith(("/thumbnails/", "/api/", "/health/", "/metrics", "/docs"))


def expected(rule: Rule, scope: str) -> bool:
    """Say whether a scope alone is enough for a call about ``clarascu`` or one of its tasks."""
    if IMPLIED.get(scope, {scope}) & set(rule.scopes):
        return True
    if rule.agent is None:
        return False
    return scope in {"agent:clarascu", "agent:*"} or (
        scope == "agent:other" and rule.agent is As.ANY
    )


def test_each_route_takes_whoever_has_its_scope_and_nobody_else(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    (task,) = local.register()
    made = {scope: make_token(scope, name=re.sub(r"\W", "-", scope) + "1") for scope in SCOPES}
    places = {
        "agent": "ClaraSCU", "task_id": task.task_id, "job_id": "job", "payload_id": "pay",
        "uri": "op/a.dcm", "name": "nowhere", "transaction_uid": "2.25.1",
        "dataset_id": "0123456789abcdef",
    }  # fmt: skip
    for (method, route), rule in RULES.items():
        path = re.sub(r"\{(\w+)(:path)?\}", lambda found: places[found[1]], route)
        if route == "/api/events":
            path += "?lastEventId=none"  # refused once it is let in: a stream would have no end
        where = f"{method} {route}"
        answer = call(local, None, method, path)
        if rule == OPEN:
            assert answer.status in ({303, 401} if method == "POST" else {200}), where
            continue
        if is_page(route):
            assert (answer.status, answer.headers["Location"][:12]) == (303, "/login?next="), where
            for scope, token in made.items():
                status = call(local, token, method, path).status
                assert (status == 403) != expected(rule, scope), (where, scope)
                assert status not in {401, 405, 500}, (where, scope)
            continue
        assert answer.status == 401, where
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="clara-results"', where
        if method != "HEAD":
            answer.problem(401, "token-missing")
        for scope, token in made.items():
            answer = call(local, token, method, path)
            if expected(rule, scope):
                assert answer.status not in {401, 403, 405, 500}, (where, scope)
                continue
            assert answer.status == 403, (where, scope)
            challenge = answer.headers["WWW-Authenticate"]
            assert 'error="insufficient_scope"' in challenge, where
            if method != "HEAD":
                detail = answer.problem(403, "insufficient-scope")["detail"]
                wanted = [*rule.scopes, *(["agent:"] if rule.agent else [])]
                assert all(each in detail for each in wanted), (where, detail)
                assert f'scope="{wanted[0]}' in challenge, where


def test_the_contract_and_its_page_stay_open(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    make_token("admin")
    document = call(local, None, path="/openapi.json").json
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert document["paths"]["/api/tasks"]["get"]["security"]
    assert "security" not in document["paths"]["/health/live"]["get"]
    assert call(local, None, path="/docs").status == 200
    assert call(local, None, path="/docs/assets/swagger-ui.css").status == 200


def test_strange_addresses_of_pages_are_no_fault(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    token = make_token("read")
    assert call(local, None, path="/login?next=/%09/[").status == 200
    assert call(local, token, path=f"/tasks?before={'9' * 5000}").status == 200
    part = {"HX-Request": "true", "HX-Current-URL": "http://["}
    answer = local.call("GET", "/tasks", headers=part)
    assert (answer.status, answer.headers["HX-Redirect"]) == (204, "/login?next=%2F")


def test_a_caller_is_refused_before_its_body_is_looked_at(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    make_token("admin")
    local.call("POST", "/api/tasks", raw=b"{no json").problem(401, "token-missing")


# Agents


def test_an_agents_token_is_for_that_agents_tasks_alone(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    (mine,) = local.register(agent="mine")
    (others,) = local.register(agent="others")
    lease = local.claim("others").lease_token or ""
    token = make_token("agent:Mine")
    client = ResultsClient(local.url, token=token)
    with pytest.raises(Refused, match="agent:others") as raised:
        client.claim("others")
    assert (raised.value.status, raised.value.code) == (403, "insufficient-scope")
    path = f"/api/tasks/{others.task_id}"
    report = {"leaseToken": lease}
    for method, where, body in (
        ("PUT", f"/api/tasks/success/{others.task_id}", report),
        ("PUT", f"/api/tasks/success/{others.task_id.upper()}", report),
        ("PUT", f"/api/tasks/success/{{{others.task_id}}}", report),
        ("PUT", f"/api/tasks/success/{others.task_id.replace('-', '')}", report),
        ("PUT", f"/api/tasks/failure/{others.task_id}", {"RetryLater": True}),
        ("PUT", f"{path}/lease", report),
        ("PUT", f"{path}/release", report),
    ):
        answer = local.call(method, where, body, headers=bearer(token))
        answer.problem(403, "insufficient-scope")
    (task,) = client.claim("Mine")
    assert task.task_id == mine.task_id
    done = client.succeed(mine.task_id, SuccessReport(lease_token=task.lease_token))
    assert done.state is State.SUCCEEDED


def test_a_token_for_every_agent(local: "LocalService", make_token: "TokenMaker") -> None:
    local.register(agent="one")
    client = ResultsClient(local.url, token=make_token("agent:*"))
    (task,) = client.claim("one")
    released = client.release(task.task_id, Release(lease_token=task.lease_token or ""))
    assert released.state is State.PENDING


@pytest.mark.parametrize(
    ("task_id", "status", "code"),
    [
        ("9f6c0a0f-c92e-4eab-aabc-d5e1855295d6", 404, "task-not-found"),
        ("no-uuid", 422, "invalid-request"),
    ],
)
def test_reports_on_no_task(
    local: "LocalService", make_token: "TokenMaker", task_id: str, status: int, code: str
) -> None:
    token = make_token("agent:mine")
    path = f"/api/tasks/success/{task_id}"
    local.call("PUT", path, headers=bearer(token)).problem(status, code)


def test_a_claim_that_waits_gets_nothing_once_its_token_is_revoked(
    local: "LocalService", make_token: "TokenMaker", revoke: Callable[[str], None]
) -> None:
    make_token("admin", name="other")
    client = ResultsClient(local.url, token=make_token("agent:clarascu"))
    registers = ResultsClient(local.url, token=make_token("register", name="register"))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(client.claim, "clarascu", wait=20.0)
        eventually(lambda: "clarascu" in local.engine.wakeups._waiting, "a claim waits")
        revoke("one")
        local.clock.advance(access.REFRESH)
        body = Registration(
            agent="clarascu", job_id="j", pipeline_id="p", payload_id="pay", uris=["a"]
        )
        (task,) = registers.register(body).tasks
        assert waiting.result(10) == []
    assert registers.task(task.task_id).state is State.PENDING


# When


def test_without_a_token_a_service_on_loopback_is_open(local: "LocalService") -> None:
    assert call(local, None).status == 200
    assert call(local, "crt_of-long-ago").status == 200


def test_the_first_token_closes_it_and_the_last_revocation_opens_it_within_five_seconds(
    local: "LocalService", make_token: "TokenMaker", revoke: Callable[[str], None]
) -> None:
    assert call(local, None).status == 200
    token = make_token("read")
    call(local, None).problem(401, "token-missing")
    assert call(local, token).status == 200
    second = make_token("read", name="second")
    revoke("one")
    local.clock.advance(5)
    answer = call(local, token)
    answer.problem(401, "token-invalid")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert call(local, second).status == 200
    revoke("second")
    local.clock.advance(5)
    assert call(local, None).status == 200


def test_a_token_that_expires_counts_no_more_and_opens_nothing(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    token = make_token("read", age=timedelta(minutes=1))
    local.clock.advance(57)
    assert call(local, token).status == 200
    local.clock.advance(1)
    answer = call(local, token)
    assert "the token one expired" in answer.problem(401, "token-expired")["detail"]
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    call(local, None).problem(401, "token-missing")


@pytest.mark.parametrize("header", ["Bearer {}", "bearer {}", "BEARER  {} "])
def test_the_token_comes_in_the_authorization_header(
    local: "LocalService", make_token: "TokenMaker", header: str
) -> None:
    headers = {"Authorization": header.format(make_token("read"))}
    assert local.call("GET", "/api/tasks", headers=headers).status == 200


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("Bearer", "token-invalid"),
        ("Bearer ", "token-invalid"),
        ("Bearer crt_x", "token-invalid"),
        ("Bearer \xe4", "token-invalid"),
        ("Basic dTpw", "token-missing"),
        ("", "token-missing"),
    ],
)
def test_what_is_no_token(
    local: "LocalService", make_token: "TokenMaker", header: str, code: str
) -> None:
    make_token("read")
    local.call("GET", "/api/tasks", headers={"Authorization": header}).problem(401, code)


def test_a_tokens_digest_is_no_token(
    local: "LocalService", make_token: "TokenMaker", beside: Database
) -> None:
    token = make_token("read")
    stored = beside.read(tokens.unrevoked).result()[0].token_sha256
    assert token not in stored
    call(local, stored).problem(401, "token-invalid")


def test_a_tokens_last_use_is_written_down_once_a_minute(
    local: "LocalService", make_token: "TokenMaker", beside: Database
) -> None:
    token = make_token("read")
    make_token("read", name="never")

    def last_use() -> object:
        return beside.read(access.listing).result().items[0].last_used_at

    first = local.clock.now()
    assert last_use() is None
    call(local, token)
    eventually(lambda: last_use() == first, "the first use is written down")
    local.clock.advance(59)
    call(local, token)
    local.clock.advance(1)
    second = local.clock.now()
    call(local, token)
    eventually(lambda: last_use() in {first, second} and last_use() != first, "the second")
    assert beside.read(access.listing).result().items[1].last_used_at is None


def test_many_callers_at_once_have_the_tokens_read_once() -> None:
    clock, reads = FakeClock(), 0

    async def read(operation: object) -> list[object]:
        nonlocal reads
        reads += 1
        await asyncio.sleep(0)
        return []

    async def write(operation: object) -> None:
        raise AssertionError("nothing is to be written")

    async def many() -> set[Caller]:
        asked = Access(read, write, clock, (), open_at_first=True)
        callers = set(await asyncio.gather(*[asked.caller(None, None) for _ in range(40)]))
        clock.advance(access.REFRESH)
        return callers | {await asked.caller(None, None)}

    assert asyncio.run(many()) == {Caller(None, EVERYTHING)}
    assert reads == 2


# From where

GRANTED = {"anonymous": (f"register,agent:clarascu@{OTHER_ADDRESS}",)}


def from_other(
    local: "LocalService", method: str, path: str, headers: dict[str, str] | None = None
) -> urllib3.BaseHTTPResponse:
    with urllib3.HTTPConnectionPool(
        local.url.removeprefix("http://"), source_address=(OTHER_ADDRESS, 0), retries=False
    ) as pool:
        return pool.request(method, path, headers=headers)


@pytest.mark.parametrize("policy", [GRANTED])
def test_who_comes_from_a_network_without_a_token_has_what_was_granted_to_it(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    call(local, None).problem(401, "token-missing")  # closed without any token, too
    assert from_other(local, "GET", "/api/tasks/ClaraSCU/pending").status == 200
    assert from_other(local, "GET", "/api/tasks/other/pending").status == 401
    refused = from_other(local, "GET", "/api/tasks")
    assert refused.status == 401
    assert "have agent:clarascu,register" in refused.json()["detail"]
    call(local, None, path="/api/tasks/ClaraSCU/pending").problem(401, "token-missing")


@pytest.mark.parametrize("policy", [GRANTED])
def test_who_shows_a_token_has_what_the_token_allows_wherever_it_comes_from(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    token = make_token("read")
    assert from_other(local, "GET", "/api/tasks", bearer(token)).status == 200
    path = "/api/tasks/clarascu/pending"
    assert from_other(local, "GET", path, bearer(token)).status == 403
    assert from_other(local, "GET", path, bearer("crt_wrong")).status == 401


@pytest.mark.parametrize("policy", [GRANTED])
def test_the_originals_client_claims_and_reports_by_its_grant(local: "LocalService") -> None:
    """It sends no token, and no body with a success."""
    body = {
        "agent": "ClaraSCU", "jobId": "j", "pipelineId": "p", "payloadId": "pay", "uris": ["a.dcm"],
    }  # fmt: skip
    with urllib3.HTTPConnectionPool(
        local.url.removeprefix("http://"), source_address=(OTHER_ADDRESS, 0), retries=False
    ) as pool:
        assert pool.request("POST", "/api/tasks", json=body).status == 201
        (task,) = pool.request("GET", "/api/tasks/clarascu/pending?size=10").json()
        assert pool.request("PUT", f"/api/tasks/success/{task['taskId']}").status == 200


@pytest.mark.parametrize(
    "policy", [{"anonymous": ("read@127.0.0.1", "register@127.0.0.0/8", "operate@10.0.0.0/8")}]
)
def test_grants_of_several_networks_add_up(local: "LocalService") -> None:
    assert call(local, None).status == 200
    assert local.call("POST", "/api/tasks", {}).status == 422
    assert local.call("POST", "/api/destinations", {}).status == 401


# Pages of other sites


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_may_change_nothing(local: "LocalService", site: str) -> None:
    """Else any page that is open on the machine could use a service that is open to the machine."""
    headers = {"Sec-Fetch-Site": site}
    for method, path in (
        ("POST", "/api/tasks/cancel"),
        ("GET", "/api/tasks/clarascu/pending"),
        ("DELETE", "/api/payloads/pay"),
    ):
        local.call(method, path, headers=headers).problem(403, "cross-site")
    assert local.call("GET", "/api/tasks", headers=headers).status == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_pages_of_our_own_may(local: "LocalService", site: str) -> None:
    headers = {"Sec-Fetch-Site": site}
    assert local.call("GET", "/api/tasks/x/pending", headers=headers).status == 200


# Our clients


def test_a_client_that_is_refused_is_told_which_setting_to_give(
    local: "LocalService", make_token: "TokenMaker"
) -> None:
    token = make_token("register")
    with pytest.raises(Refused, match="CLARA_RESULTS_TOKEN_FILE") as missing:
        ResultsClient(local.url).destinations()
    assert (missing.value.status, missing.value.code) == (401, "token-missing")
    with pytest.raises(
        Refused, match=r"needs the scope read or agent:NAME; the token one has"
    ) as few:
        ResultsClient(local.url, token=token).destinations()
    assert (few.value.status, few.value.code) == (403, "insufficient-scope")
    assert "CLARA_RESULTS_TOKEN_FILE" in str(few.value)


def test_a_token_to_register_is_enough_to_upload_register_and_follow(
    local: "LocalService", make_token: "TokenMaker", tmp_path: Path
) -> None:
    client = ResultsClient(local.url, token=make_token("register"))
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    digest = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"
    assert not client.has_file("pay", "op/a", 3, sha256)
    with path.open("rb") as content:
        client.put_file("pay", "op/a", content, 3, digest)
    assert client.has_file("pay", "op/a", 3, sha256)
    body = Registration(
        agent="clarascu", job_id="j", pipeline_id="p", payload_id="pay", uris=["op/a"], verify=True
    )
    (task,) = client.register(body).tasks
    assert client.task(task.task_id).state is State.PENDING
    with pytest.raises(Refused), client.get_file("pay", "op/a"):
        pytest.fail("what was uploaded can't be had back with it")
