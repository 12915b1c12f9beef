"""Our losses and advantages against TRL's own trainers: `GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss`.

The trainers are real (a tiny Qwen3 on the CPU); only the forward pass is replaced, by the log-probs under test, so
that both sides differentiate with respect to the same tensor. Advantages come from a real generation step whose
rewards are given.
"""

from __future__ import annotations

from typing import Any

import pytest

trl = pytest.importorskip("trl", reason="parity with TRL needs the environment of `make parity`")

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from flat import ROOM, TOLERANCE, Step, assert_parity  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # noqa: E402

from stockpot.algorithms import GRPO, RLOO, Algorithm, dapo, dr_grpo, gspo  # noqa: E402
from stockpot.types import Group, Prompt, Rollout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
GROUP = 4
REWARDS = [0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, -0.25, 0.75, 0.1, 0.0]


def tokenizer() -> Any:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefghij"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def trainer(tmp_path: Any, kind: str = "GRPO", **options: Any) -> Any:
    """A trainer that could train: everything but the loss's settings is the same small thing."""
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        per_device_train_batch_size=len(REWARDS),
        num_generations=GROUP,
        max_completion_length=ROOM,
        disable_tqdm=True,
        **options,
    )
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=12,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    rewards = iter(REWARDS * 100)

    def given(completions: list[str], **_: Any) -> list[float]:
        return [next(rewards) for _ in completions]

    model.save_pretrained(tmp_path / "model")  # by its folder, since TRL makes the reference from there
    made = getattr(trl, f"{kind}Trainer")(
        model=str(tmp_path / "model"),
        args=config,
        reward_funcs=given,
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "a b c"}] * len(REWARDS)),
    )
    made.current_gradient_accumulation_steps = 1  # set by the training loop otherwise
    return made


def theirs(made: Any, step: Step, **more: Tensor) -> tuple[Tensor, Tensor]:
    """TRL's loss on our tensors, and its gradient with respect to our flat log-probs."""
    rectangle, mask = step.rectangle(step.log_probs), step.mask.long()
    made._get_per_token_logps_and_entropies = lambda *_, **__: (rectangle, torch.zeros_like(rectangle), None)
    made.model.train()
    loss = made._compute_loss(
        made.model,
        {
            "prompt_ids": torch.ones(len(mask), 2, dtype=torch.long),
            "prompt_mask": torch.ones(len(mask), 2, dtype=torch.long),
            "completion_ids": mask,
            "completion_mask": mask,
            "advantages": torch.tensor(step.advantages, dtype=torch.float64),
            "old_per_token_logps": step.rectangle(step.batch.author_log_probs),
            "ref_per_token_logps": step.rectangle(step.reference),
            "num_items_in_batch": mask.sum(),
            **more,
        },
    )
    return loss.detach(), torch.autograd.grad(loss, step.log_probs)[0]


LOSSES: dict[str, tuple[dict[str, Any], Algorithm]] = {
    "grpo": ({"loss_type": "grpo"}, GRPO(normalise="rollout")),
    "bnpo": ({"loss_type": "bnpo"}, GRPO()),
    "dr_grpo": ({"loss_type": "dr_grpo", "scale_rewards": "none"}, dr_grpo()),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, dapo()),
    "asymmetric": (
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.4},
        GRPO(clip_low=0.1, clip_high=0.4, normalise="rollout"),
    ),
    "gspo": (
        {"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"},
        gspo(),
    ),
    "sequence, wide": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        GRPO(level="rollout", normalise="rollout"),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", [0, 1])
def test_losses_and_gradients_are_trls(name: str, seed: int, tmp_path: Any) -> None:
    options, algorithm = LOSSES[name]
    step = Step.make(seed, spread=2e-4 if name == "gspo" else 0.3)
    assert_parity(step.ours(algorithm), theirs(trainer(tmp_path, **options), step))


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_the_kl_term_is_trls_where_both_average_over_tokens(loss_type: str, tmp_path: Any) -> None:
    """Ours is always a mean over the update's tokens; TRL's takes the loss's own denominator.

    TRL multiplies the term by the ratio unless told otherwise (DeepSeek-V3.2's correction); GRPO as published does not.
    """
    step = Step.make(2)
    made = trainer(tmp_path, loss_type=loss_type, beta=0.04, epsilon_high=0.2, use_bias_correction_kl=False)
    assert_parity(step.ours(GRPO(), kl=0.04), theirs(made, step))


@pytest.mark.parametrize("seed", [0, 1])
def test_rloo_is_trls_when_the_whole_response_is_one_action(seed: int, tmp_path: Any) -> None:
    """TRL averages over responses, which is our constant denominator with room for one token."""
    step = Step.make(seed, spread=0.05)
    old = (step.rectangle(step.batch.author_log_probs) * step.mask).sum(-1)
    made = trainer(tmp_path, "RLOO", beta=0.0)
    assert_parity(step.ours(RLOO(level="rollout", normalise="constant"), room=1), theirs(made, step, old_logps=old))


@pytest.mark.parametrize(
    ("kind", "options", "algorithm"),
    [
        ("GRPO", {"scale_rewards": "group"}, GRPO()),
        ("GRPO", {"scale_rewards": "none"}, dr_grpo()),
        ("RLOO", {"beta": 0.0}, RLOO()),
    ],
    ids=["scaled by group", "not scaled", "rloo"],
)
def test_advantages_are_trls(kind: str, options: dict[str, Any], algorithm: Algorithm, tmp_path: Any) -> None:
    made = trainer(tmp_path, kind, **options)
    made.model.train()
    produced = made._generate_and_score_completions([{"prompt": "a b c"} for _ in REWARDS])["advantages"]
    ours = []
    for start in range(0, len(REWARDS), GROUP):
        prompt = Prompt("p", [1])
        rollouts = tuple(Rollout(prompt, (), reward) for reward in REWARDS[start : start + GROUP])
        ours += algorithm.advantages(Group(prompt, rollouts))
    torch.testing.assert_close(torch.tensor(ours), produced.float().cpu(), rtol=TOLERANCE, atol=TOLERANCE)
