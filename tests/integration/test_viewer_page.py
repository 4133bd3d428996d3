"""The viewer's page as the service sends it: for whom, and safe whatever a dataset is called."""

import json
import re
from typing import TYPE_CHECKING

import pytest

from clara_results.wire.codec import from_json
from clara_results.wire.datasets import Dataset
from tests.integration.test_api_datasets import DENSITY, Maker

if TYPE_CHECKING:
    from tests.integration.conftest import LocalService, TokenMaker

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
NAME = "</script><script>alert(1)</script><!--"


def publish(local: "LocalService") -> Dataset:
    local.register(DENSITY, agent="renderserver")
    return Maker(local, local.claim("renderserver", lease=60)).publish(name=NAME)


def test_a_name_does_not_become_markup(local: "LocalService") -> None:
    made = publish(local)
    answer = local.call("GET", f"/viewer/{made.dataset_id}")
    text = answer.data.decode()
    assert answer.status == 200
    assert "<script>alert" not in text
    found = re.search(r'<script type="application/json" id="dataset">(.*?)</script>', text, re.S)
    assert found is not None
    assert from_json(Dataset, json.loads(found[1])) == made
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_who_may_look_may_not_save(local: "LocalService", make_token: "TokenMaker") -> None:
    made = publish(local)
    for scopes, saves in ((("read",), False), (("read", "operate"), True)):
        token = make_token(*scopes, name="-".join(scopes))
        headers = {"Authorization": f"Bearer {token}"}
        answer = local.call("GET", f"/viewer/{made.dataset_id}", headers=headers)
        assert answer.status == 200
        assert ("Save view" in answer.data.decode()) is saves
    assert local.call("GET", f"/viewer/{made.dataset_id}").status == 303  # to the sign-in


def test_a_dataset_that_is_not_there_is_said_so(local: "LocalService") -> None:
    answer = local.call("GET", "/viewer/none")
    assert answer.status == 404
    assert "there is no such dataset" in answer.data.decode()
