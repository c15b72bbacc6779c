"""Request records and catalog entries for tests."""

from hekaton.facts import CatalogEntry, ModelState, RequestRecord, Sampling, Slo

SLO = Slo(ttft_s=10.0, tbt_s=0.1)


def record(request_id: str = "r1", *, model: str = "m1", prompt_tokens: int = 3, max_tokens: int = 16) -> RequestRecord:
    sampling = Sampling(max_tokens=max_tokens, seed=7, stop_token_ids=(0, 2))
    return RequestRecord(request_id, "router-1", model, prompt_tokens, sampling, SLO, deadline_s=60.0)


def catalog_entry(name: str = "m1", state: ModelState = ModelState.PREPARING) -> CatalogEntry:
    return CatalogEntry(name, source=f"/models/{name}", dtype="float32", slo=SLO, state=state)
