"""The automatic level: its rule, where it begins, whom it concerns, what can be read of it."""

from __future__ import annotations

import copy
import io
import math
import pickle

import pytest
import torch

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP, Automagic_CameAMP8bit, OptimizationProfiles
from automagic_cameamp import create_improved_8bit_optimizer as create
from automagic_cameamp import techniques as T
from automagic_cameamp.recipes import _level
from automagic_cameamp.techniques.level import OFTEN
from reference import drive
from reference.draws import normal

NUMBERS = len(T.Level._fields)


def slowly(old, n, gg, vv, s, active):
    """The rule in Python's numbers, case by case."""
    t, level, along, size, since, peak, minus, top = old
    if minus < 0 and s < 0.95 * -minus:
        top = s / (-minus / top)
    top, t, way = max(top, s), t + 1, math.sqrt(vv)
    before, minus = minus, -s
    left, s = s / top, min(s, 1.0)
    seen = gg > 0 and vv > 0
    c = n / math.sqrt(gg) / way if seen else 0.0
    if since <= 0:
        if seen:
            along, size, since = 0.7 * along + c, 0.7 * size + 1, -(0.7 * -since + c * c)
            q = along / size
            count = 1.7 * size / (2 - 0.3 * size)
            error = math.sqrt(max(-since / size - q * q, 0) / (count - 1)) if count > 1.5 else math.inf
            peak = max(peak, q - error)
            doubt = 3 * min((60 - t) / 40, 1) * error if t < 60 else 0
            if t > 8 and q <= 0.05 * peak and (peak >= doubt or q <= -doubt):
                return [t, level * s / 1.4, 0.0, 0.0, t, peak, minus, top]
        if seen or (t > 8 and before < 0 and gg > 0):
            level *= (4 if level < 1e-5 else 1.2) ** (active * (min(2 * s, 1) if left < 1 else s > 0))
        return [t, level, along, size, since, peak, minus, top]
    along, size = along + way * c, size + way
    if size > 0 and t - since >= max(since, 8) / 4:
        q = along / size
        peak = max(peak, q)
        if peak > 0:
            up = min(max(2 * q / peak, 0), 1) * s * s
            down = min(max(-2 * q / peak, 0), 1)
            down *= min(1, 60 / t) ** 2 if left < 1 else 1
            level *= 2 ** ((up - down * left**4) * 4 / max(t, 8) * min(1, 300 / t))
    if t - since >= max(since, 8):
        return [t, level, 0.0, 0.0, t, peak, minus, top]
    return [t, level, along, size, since, peak, minus, top]


@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("begun", [0.0, 3000.0])
@pytest.mark.parametrize("lean", [0.3, 0.0, -0.3])
def test_the_rule_is_the_one_that_it_says(lean, begun, jumps):
    old = [begun, 3e-7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    fast, numbers = T.Level.of(torch.tensor(old)), T.Level(*old)
    landed = 0
    for t in range(300):
        draw = normal((4,), t).tolist()
        gg, vv = math.exp(draw[0]), 0.0 if t % 17 == 0 else 1e-4 * math.exp(draw[1])
        turn = lean if t > 60 else 0.5  # there is always a way up first
        n = math.sqrt(gg * vv) * math.tanh(turn + 0.2 * draw[2] - (0.8 if 40 < t <= 60 else 0.0))
        s = 1.5 / (1 + math.exp(-draw[3])) if jumps else 1.2 - t / 300
        active = 1.0 if t % 3 else 0.5
        old = slowly(old, n, gg, vv, s, active)
        fast = T.steer(fast, tuple(torch.tensor([n, gg, vv])), torch.tensor(s), torch.tensor(active))
        numbers = T.steer(numbers, (n, gg, vv), s, active)
        torch.testing.assert_close(torch.stack(fast), torch.tensor(old), rtol=2e-4, atol=2e-5)
        assert list(numbers) == pytest.approx(old, rel=1e-9, abs=1e-12)
        landed += old[4] > 0
    assert 100 < landed < 300
    assert old[1] != pytest.approx(3e-7)


def landings(lean, spread):
    """The step at which the take-off ends, where correlations scatter about ``lean``; 150 runs, ascending."""
    found = []
    for seed in range(150):
        level, scatter = T.Level.begun(1e-6), normal((120,), seed).tolist()
        for draw in scatter:
            level = T.steer(level, (math.tanh(lean + spread * draw), 1.0, 1.0), 1.0)
            if level.since > 0:
                break
        found.append(level.steps)
    return sorted(found)


@pytest.mark.parametrize("size", [0.01, 0.05, 0.3])
def test_noise_alone_ends_no_take_off_at_once_and_none_lasts_for_ever(size):
    """As with batches of one: single samples say more of each other than of the loss."""
    weak, none = landings(0.4 * size, size), landings(0.0, size)
    assert weak[75] > 30 and none[75] > 30, "without errors half of them had landed at the 12th and 9th step"
    assert weak[15] > 15 and none[15] > 15, "a tenth had at the 9th where the peak was not less its error"
    assert max(weak[-1], none[-1]) < 110
    assert landings(-0.5, 0.1)[-1] == 9, "what is surely too high lands at the first chance"


@pytest.mark.parametrize("stale", [0, 3, 6])
@pytest.mark.parametrize("begun", [0, 5, 900])
def test_a_device_works_out_the_level_that_the_host_does(begun, stale):
    rows = normal((7, 11), begun).float().abs() + 0.1
    rows[:, 3], rows[:, 10] = float(begun), 1.0  # steps and top
    rows[:, 4:] = rows[:1, 4:]
    rows[:stale, 3] = float(max(begun - 2, 0))
    rows[3:stale, 3] = float(max(begun - 20, 0))  # these rest
    rows[5, 1] = 0.0  # has moved, and had no gradient
    rows[6, :3] = 0.0  # has never had one
    for schedule in (0.0, 0.4, 1.0, 1.7):
        there = _level.steered_there(rows, 1e-4, schedule, rows.device)
        here = _level.steered(rows, 1e-4, torch.tensor(schedule), rows.device)
        torch.testing.assert_close(there, here, rtol=1e-5, atol=0)
        assert float(here[0]) == begun + 1
    active = _level.seen(rows.numpy()).active
    assert active == pytest.approx(1.0 if not begun else {0: 5 / 6, 3: 2 / 6, 6: 0.0}[stale])


def test_a_device_begins_as_the_host_does():
    cpu = torch.device("cpu")
    for start in (1e-9, 1e-6, 1e-3, 1.0):
        torch.testing.assert_close(
            _level.steered_there(None, start, 1.0, cpu), _level.steered(None, start, 1.0, cpu)
        )


@pytest.mark.parametrize("engine", ["reference", "auto"])
def test_the_default_type_of_the_program_is_not_ours(engine):
    """Scripts that load language models set it to bfloat16."""

    def run():
        p = torch.nn.Parameter(normal((30, 20), 1).float())
        optimizer = Automagic_CameAMP([p], engine=engine)
        for t in range(60):
            p.grad = p.detach() + 0.3 * normal((30, 20), t).float()
            optimizer.step()
        rows = optimizer.state[p]["auto_level"].reshape(1, -1)
        there = _level.steered_there(rows, 1e-6, 0.3, rows.device)
        return [p.detach(), optimizer.state[p]["auto_level"], optimizer.param_groups[0]["d"], there]

    usual = run()
    torch.set_default_dtype(torch.bfloat16)
    assert all(map(torch.equal, run(), usual))


@pytest.mark.parametrize("bound", [{}, {"max_lr": 1e-4}], ids=str)
def test_the_mask_is_shown_at_the_rate_that_was_found(bound):
    p = torch.nn.Parameter(normal((30, 20), 1).float())
    optimizer = Automagic_CameAMP8bit([p], **bound)
    for t in range(40):
        p.grad = p.detach() + 0.1 * normal((30, 20), t).float()
        optimizer.step()
    shown = optimizer.high_precision_states[0]["lr_mask"]
    group = optimizer.param_groups[0]
    found = float(group["d"]) * group["lr"]
    assert found > 1e-3
    assert float(shown.mean()) == pytest.approx(min(found, bound.get("max_lr", found)), rel=0.05)
    assert float(shown.mean()) == pytest.approx(optimizer.get_learning_rates()[0], rel=0.05)


def test_what_a_long_run_can_still_move_is_bounded():
    level = T.Level(1000.0, 1e-3, 0.0, 0.0, 500.0, 0.1, 1.0, 1.0)
    for _ in range(1000):
        level = T.steer(level, (1.0, 1.0, 1.0), 1.0)
    moved = math.log2(level.value / 1e-3)
    assert 0.2 < moved < 0.4, (
        "at most 4000 / 5000 doublings less those after 10,000, and a window is blind at first"
    )


@pytest.mark.parametrize("schedule, fell", [(1.0, True), (0.999, False)])
def test_a_level_does_not_fall_late_where_the_schedule_does(schedule, fell):
    level = T.Level(1000.0, 1e-3, 0.0, 0.0, 900.0, 0.1, 1.0, 1.0)
    for _ in range(4000):
        level = T.steer(level, (-0.1, 1.0, 1.0), schedule)
    down = -math.log2(level.value / 1e-3)
    assert (down > 0.5) is fell
    assert fell or down < 1200 / 3 * (60**2 / 1000**3), "the integral of what is left from step 1,000 on"


def test_a_look_back_sees_whether_the_gradient_points_along_the_way():
    g, p = normal((2, 1, 6, 40), 1).float(), normal((2, 1, 6, 40), 2).float()
    anchor = p[..., :5] + 0.1 * normal((2, 1, 6, 5), 3).float()
    level, known = T.Level.of(torch.tensor([133.0, 1, 0, 0, 2, 0, 1, 1])), torch.tensor([2.0, 2.0])
    sums, kept = T.look_back(g, anchor, p, level, known)
    way = anchor - p[..., :5]
    wanted = [(g[..., :5] * way), g[..., :5] ** 2, way**2]
    torch.testing.assert_close(sums, torch.stack([x.sum((1, 2, 3)) * 8 for x in wanted], 1))
    assert torch.equal(kept, anchor)
    blind, _ = T.look_back(g, anchor, p, level._replace(steps=torch.tensor(134.0)), known)
    assert not blind.any(), "once settled it looks at one step in four"
    renewed, kept = T.look_back(
        g, anchor, p, level._replace(since=torch.tensor(4.0)), torch.tensor([2.0, 4.0])
    )
    assert torch.equal(kept[0], p[0, ..., :5]) and not renewed[0, 0] and renewed[:, 1].all()
    assert torch.equal(kept[1], anchor[1]), "this one has been updated since"


def test_no_cycle_of_a_program_hides_from_it():
    level = T.Level(*[1.0] * len(T.Level._fields))
    looked = [s for s in range(1024) if level._replace(steps=float(s)).looks]
    assert looked[: OFTEN + 1] == list(range(OFTEN + 1)), "windows are short at first"
    looked = looked[OFTEN + 1 :]
    assert len(looked) == pytest.approx((1023 - OFTEN) / 4, abs=2)
    for cycle in range(2, 17):
        counts = [sum(s % cycle == part for s in looked) for part in range(cycle)]
        assert min(counts) > 0.5 * max(counts), (cycle, counts)


@pytest.mark.parametrize("rows, cols", [(8, 1280), (1280, 8), (16, 1280), (1280, 16), (1280, 1280), (10, 3)])
def test_it_looks_at_a_sixteenth_of_a_layer(rows, cols):
    columns = T.left_columns(rows, cols, True)
    assert 1 <= columns <= cols
    assert columns * rows >= min(512, rows * cols)
    assert columns <= max(1, cols // 16, -(-512 // rows))


def levels(**options):
    return [
        g["lr_level"] for g in Automagic_CameAMP([torch.nn.Parameter(torch.ones(2))], **options).param_groups
    ]


def test_who_gives_a_rate_keeps_it_and_who_gives_none_has_it_found():
    assert levels() == ["auto"]
    assert levels(lr=1e-6) == levels(lr=1e-3) == ["fixed"]
    assert levels(lr=1e-3, lr_level="auto") == levels(lr_level="auto", lr=1.0) == ["auto"]
    assert levels(lr_level="fixed") == ["fixed"]
    assert levels(techniques={"lr_mask_rule": "additive"}) == ["fixed"]
    p = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
    mixed = Automagic_CameAMP([{"params": p[:1]}, {"params": p[1:], "lr": 1e-6}])
    assert [g["lr_level"] for g in mixed.param_groups] == ["auto", "fixed"]
    both = Automagic_CameAMP([{"params": p[:1], "lr": 1e-4}, {"params": p[1:], "lr": 1e-5}], lr_level="auto")
    assert [g["lr_level"] for g in both.param_groups] == ["auto", "auto"]


def test_a_default_that_is_passed_on_is_no_rate_given():
    p = [torch.nn.Parameter(torch.ones(4, 4))]
    cls = OPTIMIZERS["Automagic_CameAMP_Improved_8Bit"]
    for optimizer in (
        cls(p, **OptimizationProfiles.balanced().__dict__),
        create(p),
        cls(p, **copy.deepcopy(OptimizationProfiles.memory_optimized()).__dict__),
        cls(p, **pickle.loads(pickle.dumps(OptimizationProfiles.minimal())).__dict__),
    ):
        group = optimizer.param_groups[0]
        assert group["lr_level"] == "auto" and group["lr"] == 1e-6 and type(group["lr"]) is float
    config = OptimizationProfiles.balanced()
    config.lr = 1e-6
    assert cls(p, **config.__dict__).param_groups[0]["lr_level"] == "fixed"


def test_it_cannot_go_with_rates_that_are_added_to():
    with pytest.raises(ValueError, match=r"lr_level='auto'.*additive"):
        Automagic_CameAMP(
            [torch.nn.Parameter(torch.ones(2))], lr_level="auto", techniques={"lr_mask_rule": "additive"}
        )


def quadratic(steps=150, schedule=lambda t: 1.0, cls=Automagic_CameAMP, engine="reference", **options):
    """Losses and applied rates on a badly scaled quadratic."""
    p = torch.nn.Parameter(torch.zeros(16, 24))
    target, curvature = normal((16, 24), 1).float(), normal((16, 24), 2).exp().float()
    optimizer = cls([p], engine=engine, **options)
    group = optimizer.param_groups[0]
    first, losses, rates = group["lr"], [], []
    for t in range(steps):
        error = p.detach() - target
        losses.append(float((curvature * error.square()).sum()))
        p.grad = curvature * error + 0.3 * normal((16, 24), 100 + t).float()
        group["lr"] = first * schedule(t)
        optimizer.step()
        rates.append(float(group["d"] * group["lr"]))
    return losses, rates, optimizer


STARTS = [{}, *({"lr": lr, "lr_level": "auto"} for lr in (1e-8, 1e-5, 1e-2, 1.0))]


@pytest.mark.parametrize("options", STARTS, ids=str)
def test_it_finds_the_rate_from_any_start_and_with_none(options):
    losses, rates, _ = quadratic(**options)
    assert rates[0] < 1.01e-5, "a start that is too high is no start"
    assert losses[-1] < 0.05 * losses[0]
    assert 1e-2 < rates[-1] < 1


def test_what_d_says_is_what_is_applied():
    options = {"techniques": {"lr_mask_rule": "none"}, "full_finetune": True}
    for lr in (None, 1e-4, 1.0):
        given = {} if lr is None else {"lr": lr, "lr_level": "auto"}
        _, rates, optimizer = quadratic(60, lambda t: 1 - t / 100, **options, **given)
        assert optimizer.get_learning_rates() == pytest.approx([rates[-1]], rel=1e-4)
        assert isinstance(optimizer.param_groups[0]["d"], torch.Tensor)


def test_a_schedule_stays_a_schedule():
    losses, rates, _ = quadratic(150, lambda t: 1 - t / 150)
    assert rates[-1] < 0.1 * max(rates)
    assert losses[-1] < 0.02 * losses[0]
    _, rates, _ = quadratic(150, lambda t: min(1.0, t / 50))
    assert rates[0] == 0 and max(rates) < 1, "a warm-up is not made up for"


def test_groups_keep_their_ratios_and_one_of_rate_zero_its_weights():
    params = drive.parameters([(8, 8), (8, 8), (8, 8)])
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (1e-4, 1.6e-3, 0.0), strict=True)]
    optimizer = Automagic_CameAMP(
        groups, lr_level="auto", full_finetune=True, techniques={"lr_mask_rule": "none"}
    )
    before, target = params[2].detach().clone(), normal((8, 8), 7).float()
    for _ in range(60):
        for p in params:
            p.grad = p.detach() - target
        optimizer.step()
    a, b, c = optimizer.get_learning_rates()
    assert b / a == pytest.approx(16, rel=1e-4) and c == 0
    assert a > 1e-5
    assert torch.equal(params[2], before)


def test_who_joins_late_takes_the_level_of_the_others():
    params = drive.parameters([(8, 8), (8, 8)])
    optimizer = Automagic_CameAMP(params, full_finetune=True)
    for t in range(60):
        for p in params[: 1 if t < 50 else 2]:
            p.grad = p.detach() - 1.0
        optimizer.step()
        params[1].grad = None
    late, early = (optimizer.state[p]["auto_level"][3:] for p in reversed(params))
    assert torch.equal(late, early) and float(late[1]) > 1e-4


def test_gradients_that_are_not_finite_change_nothing():
    p = torch.nn.Parameter(normal((8, 8), 1).float())
    optimizer = Automagic_CameAMP([p])
    for _ in range(20):
        p.grad = p.detach() * 1.0
        optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[p].items()}
    p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in optimizer.state[p].items())
    p.grad = p.detach() * 1.0
    optimizer.step()
    assert float(optimizer.state[p]["auto_level"][3]) == float(before["auto_level"][3]) + 1


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("cls", [Automagic_CameAMP8bit, OPTIMIZERS["Automagic_CameAMP_COptim8bit"]])
def test_a_run_goes_on_bit_for_bit(cls, engine):
    def make():
        params = [torch.nn.Parameter(normal(s, 3).float()) for s in ((12, 40), (7,), (5, 3, 3, 3))]
        return params, cls(params, engine=engine)

    def train(params, optimizer, first, last):
        for t in range(first, last):
            for i, p in enumerate(params):
                p.grad = (p.detach() - 0.3) + 0.1 * normal(tuple(p.shape), 50 * t + i).float()
            optimizer.step()

    params, optimizer = make()
    train(params, optimizer, 0, 45)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    saved = [p.detach().clone() for p in params]
    assert "d" not in optimizer.state_dict()["param_groups"][0]
    train(params, optimizer, 45, 90)
    others, resumed = make()
    with torch.no_grad():
        for p, value in zip(others, saved, strict=True):
            p.copy_(value)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert float(resumed.param_groups[0]["d"]) > 1
    train(others, resumed, 45, 90)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        for name, value in optimizer.state[p].items():
            assert torch.equal(value, resumed.state[q][name]), name
    assert torch.equal(optimizer.param_groups[0]["d"], resumed.param_groups[0]["d"])
