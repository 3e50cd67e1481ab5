"""The table of `training_args` against the classes that are installed, and what training does with them."""

import dataclasses
import types
import typing
from typing import Any

import pytest
from pydantic import ValidationError

from db.params.fine_tune import FineTuneParams
from db.params.training_args import PARAM_OF, WHY_NOT, taken_by
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES
from worker.steps.methods import METHODS

GIVEN = {"base_model": "m", "training_file": "file-1", "name": "m"}

pytestmark = WARNINGS_OF_LIBRARIES

VALUES = {
    "bool": True, "count": 3, "number": 0.5, "share": 0.5, "text": "x", "object": {},
    "list of numbers": [1.0], "part": 1.0, "positive number": 0.5,
}  # fmt: skip


def config_of(method: str, **settings: Any) -> Any:
    chosen = {"packing": False, "max_length": 8, "beta": 0.1, "tuning": "lora"}
    chosen |= {"num_generations": 8, "max_completion_length": 8, "temperature": 1.0, "reward_weights": [1.0]}
    return METHODS[method].config(chosen, output_dir="x", use_cpu=True, **settings)


def accepts(annotation: Any, value: Any) -> bool:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(accepts(each, value) for each in typing.get_args(annotation))
    if typing.get_origin(annotation) in (dict, list):
        annotation = typing.get_origin(annotation)
    return isinstance(value, int | float) if annotation is float else isinstance(value, annotation)


class TestTable:
    @pytest.mark.parametrize("method", METHODS)
    def test_has_every_field_of_the_installed_class_and_no_other(self, method):
        """Each is taken, or set by a param, or refused for a reason."""
        fields = {field.name: field.type for field in dataclasses.fields(config_of(method))}
        taken = taken_by(method)
        assert taken.keys() <= fields.keys()
        assert fields.keys() - taken.keys() - PARAM_OF.keys() - WHY_NOT.keys() == set()
        assert not taken.keys() & (PARAM_OF.keys() | WHY_NOT.keys())
        for name, takes in taken.items():
            if isinstance(takes, str):
                kind, _, optional = takes.partition(" or ")
                assert accepts(fields[name], VALUES[kind]), name
                assert not optional or accepts(fields[name], None), name
            else:
                assert accepts(fields[name], [*takes] if isinstance(takes, frozenset) else takes[0]), name

    def test_names_params_that_there_are(self):
        assert set(PARAM_OF.values()) <= FineTuneParams.model_fields.keys()

    def test_offers_every_optimiser_that_can_be_made_and_no_other(self, tmp_path):
        import torch
        from transformers import Trainer, TrainingArguments
        from transformers.training_args import OptimizerNames

        def can_be_made(name: str) -> bool:
            arguments = TrainingArguments(
                output_dir=str(tmp_path), optim=name, use_cpu=True, report_to="none"
            )
            try:
                Trainer(model=torch.nn.Linear(2, 2), args=arguments).create_optimizer()
            except (ImportError, ValueError):
                return False
            return True

        assert {each.value for each in OptimizerNames if can_be_made(each.value)} == {
            *taken_by("supervised")["optim"]
        }

    def test_offers_every_schedule(self):
        from transformers.trainer_utils import SchedulerType

        assert {each.value for each in SchedulerType} == set(taken_by("supervised")["lr_scheduler_type"])


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"learning_rate": 1},
                "training_args.learning_rate is set by the param learning_rate: give that",
            ),
            ({"num_train_epochs": 1}, "set by the param epochs"),
            ({"output_dir": "/etc"}, "cannot be given: it names a file or a folder"),
            ({"hub_token": "x"}, "cannot be given: it says where results or tokens go"),
            ({"trust_remote_code": True}, "cannot be given: it would load a model, or run code"),
            ({"bf16": True}, "cannot be given: the type that is computed in"),
            ({"deepspeed": {}}, "cannot be given"),
            (
                {"adam_beta3": 1},
                r"is no field of the method 'supervised'. Do you mean adam_beta\d\? It takes: .*adam_beta1",
            ),
            ({"warmup_ratio": 0.1}, r"Do you mean the param warmup_steps\? It takes"),
            ({"adam_beta1": 1.0}, "adam_beta1 must be a number from 0 to below 1"),
            ({"adam_epsilon": "small"}, "adam_epsilon must be a number"),
            ({"optim": "lomo"}, "optim must be one of adamw_torch, "),
            ({"torch_compile": 1}, "torch_compile must be true or false"),
            ({"per_device_eval_batch_size": 0}, "a whole number of at least 1"),
            ({"max_grad_norm": float("inf")}, "a number of at least 0"),
            ({"lr_scheduler_kwargs": {"min_lr": float("nan")}}, "an object, each number in it finite"),
            ({"loss_type": "sigmoid"}, "loss_type must be one of nll, dft"),
        ],
    )
    def test_say_why_and_what_to_do(self, given, message):
        with pytest.raises(ValidationError, match=message):
            FineTuneParams(**GIVEN, training_args=given)

    def test_follow_the_method(self):
        FineTuneParams(**GIVEN, method="dpo", training_args={"loss_type": ["sigmoid", "sft"]})
        with pytest.raises(ValidationError, match="must be a list of some of"):
            FineTuneParams(**GIVEN, method="dpo", training_args={"loss_type": ["nll"]})
