"""What an attempt is given of what the operator names: by the rows of its job, and only where it needs it."""

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.settings import Settings
from db.states import JobKind, Outcome
from tests.rows import add_job
from worker.claim import claim_step
from worker.endings import Ending, end_attempt
from worker.step import BaseWeights
from worker.step_input import build_step_input


class TestRewards:
    def test_are_given_to_the_steps_that_ask_them(self, session: Session, tmp_path: Path) -> None:
        path = tmp_path / "rewards.toml"
        path.write_text('[reward.polite]\nfunction = "house_rewards:polite"\n')
        settings = Settings(database_url="postgresql://x", data_dir=tmp_path, rewards=path)
        params = {"name": "m", "rewards": ["brevity", "polite"], "base_model": "org/base"}
        job = add_job(session, kind=JobKind.FINE_TUNE, params=params)
        given = {}
        for step in job.steps:
            claim = claim_step(session, step.queue, worker="w", host="h", lease_seconds=15)
            assert claim is not None
            given[claim.step] = build_step_input(session, settings, claim).rewards
            session.refresh(job)
            end_attempt(session, job, step, Ending(Outcome.DONE))
            if claim.step == "verify":
                break
        asked = [
            {"name": "brevity", "function": None, "projects": None},
            {"name": "polite", "function": "house_rewards:polite", "projects": None},
        ]
        assert given == {"prepare": asked, "train": asked, "export": [], "verify": asked}

    def test_that_are_there_no_more_end_the_job(self, session: Session, tmp_path: Path) -> None:
        settings = Settings(database_url="postgresql://x", data_dir=tmp_path)
        params = {"name": "m", "rewards": ["polite"], "base_model": "org/base"}
        add_job(session, kind=JobKind.FINE_TUNE, params=params)
        claim = claim_step(session, "cpu", worker="w", host="h", lease_seconds=15)
        assert claim is not None
        with pytest.raises(InvalidInput, match="there is no reward 'polite'"):
            build_step_input(session, settings, claim)


def test_a_base_that_is_stored_quantised_comes_with_what_it_was_made_from(
    session: Session, tmp_path: Path
) -> None:
    bases = tmp_path / "bases"
    for name in ("x", "x-gptq"):
        (bases / name).mkdir(parents=True)
        (bases / name / "config.json").write_text("{}")
    settings = Settings(data_dir=tmp_path / "data", base_models_dir=bases)
    params = {"base_model": "x-gptq", "merge_base": "x", "name": "faq"}
    job = add_job(session, kind=JobKind.FINE_TUNE, params=params, priority=1000)
    session.flush()
    claim = claim_step(session, "cpu", worker="w", host="h", lease_seconds=60)
    assert claim is not None
    assert claim.job_id == job.id
    given = build_step_input(session, settings, claim)
    merge_base = BaseWeights("x", "folder", str(bases / "x"))
    assert given.base == BaseWeights("x-gptq", "folder", str(bases / "x-gptq"), merge_base=merge_base)
    assert given.sixteen_bit_base == merge_base
    assert type(given).from_json(given.to_json()).base == given.base
