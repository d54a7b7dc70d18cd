"""The memory plan: what lies where, in which type, and why. No ComfyUI, no torch, no weights."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from neurolux.errors import InvalidParameter
from neurolux.families.parts.control_shapes import published_control_shape
from neurolux.planning.adapters import with_adapters
from neurolux.planning.costs import CONTEXT_BYTES, decode_bytes, encode_bytes, encode_image_bytes, sample_bytes, spread
from neurolux.planning.layout import (
    LayoutCost,
    blocks_on_device,
    device_bytes,
    ram_peak,
    residency_options,
    shortage,
)
from neurolux.planning.planner import leaner, make_plan
from neurolux.planning.records import (
    OFFLOAD_CHOICES,
    PRECISION_CHOICES,
    ComponentShape,
    Machine,
    VaeCosts,
    Workload,
)
from neurolux.planning.report import as_json, table

from tests.pack.plans import GB, MODELS, card, costs, cpu, denoiser, plan, workload


@pytest.mark.parametrize("offload", OFFLOAD_CHOICES[1:])
@pytest.mark.parametrize("precision", PRECISION_CHOICES[1:])
@pytest.mark.parametrize("name", ["flux-dev", "sdxl-lightning", "starter"])
def test_explicit_choices_are_kept(name: str, precision: str, offload: str) -> None:
    for machine in (card(80), card(6), cpu(64), cpu(6)):
        found = plan(name, machine, precision, offload)
        assert (found.precision, found.offload) == (precision, offload)
        assert f"precision {precision}: as chosen" in found.reasons
        assert f"offload {offload}: as chosen" in found.reasons
        if not found.fits:
            assert any(reason.startswith("does not fit: it needs ") for reason in found.reasons)


@pytest.mark.parametrize(
    ("precision", "storage", "compute", "t5", "clip"),
    [
        ("bf16", "bf16", "bf16", "bf16", "bf16"),
        ("fp16", "fp16", "fp16", "fp32", "fp32"),  # T5 overflows in fp16
        ("fp32", "fp32", "fp32", "fp32", "fp32"),
        ("fp8", "fp8", "bf16", "fp8", "bf16"),
        ("int8", "int8", "bf16", "int8", "bf16"),
        ("nf4", "nf4", "bf16", "nf4", "bf16"),
        ("as-is", "bf16", "bf16", "bf16", "bf16"),
    ],
)
def test_types_of_the_components(precision: str, storage: str, compute: str, t5: str, clip: str) -> None:
    found = plan("flux-dev", card(80), precision)
    assert (denoiser(found).storage, denoiser(found).compute) == (storage, compute)
    assert found.components["text_encoder_2"].storage == t5
    assert found.components["text_encoder"].storage == clip
    assert found.components["vae"].storage == ("fp32" if precision in ("fp16", "fp32") else "bf16")
    sdxl = plan("sdxl-lightning", card(80), precision)
    assert sdxl.components["text_encoder_2"].storage == {"fp16": "fp16", "fp32": "fp32"}.get(precision, "bf16")


def test_fp16_decodes_in_fp32_where_the_vae_asks_for_it() -> None:
    asks = plan("sdxl-lightning", card(12), "fp16", force_upcast_vae=True)
    assert (asks.components["vae"].storage, denoiser(asks).storage) == ("fp32", "fp16")
    assert plan("sdxl-lightning", card(12), "fp16").components["vae"].storage == "fp16"


@pytest.mark.parametrize(
    ("name", "traits", "storage", "compute"),
    [
        ("flux-dev", {"bf16": False}, "bf16", "fp32"),  # the files' own type is kept; only computing is widened
        ("sdxl-lightning", {"bf16": False}, "fp16", "fp16"),
        ("sdxl-lightning", {"bf16": False, "fp16": False}, "fp16", "fp32"),
        ("flux-dev", {}, "bf16", "bf16"),
    ],
)
def test_a_card_without_bf16(name: str, traits: dict[str, bool], storage: str, compute: str) -> None:
    found = plan(name, card(6, **traits))
    assert (denoiser(found).storage, denoiser(found).compute) == (storage, compute)
    assert found.fits


def test_an_mps_device_shares_its_memory() -> None:
    found = plan("flux-schnell", Machine("mps", 0, 64 * GB, bf16=False, fp16=True))
    assert (found.offload, denoiser(found).compute) == ("none", "fp16")
    assert found.components["text_encoder_2"].compute == "fp32"


def test_fp8_is_not_chosen_where_the_device_cannot_hold_it() -> None:
    assert plan("flux-schnell", card(12), side=512).precision == "fp8"
    assert plan("flux-schnell", card(12, fp8=False), side=512).precision == "bf16"


def test_int8_and_nf4_are_only_recommended() -> None:
    found = plan("flux-dev", card(8, 14))
    assert (found.precision, found.offload) == ("bf16", "disk")
    assert any(reason.startswith("choose precision nf4 for speed") for reason in found.reasons)


def test_nf4_is_chosen_where_nothing_else_fits() -> None:
    """Two blocks so large that no other type gets even one of them onto the card beside the next."""
    shapes = {
        "text_encoder": ComponentShape(10**8, stored="bf16"),
        "transformer": ComponentShape(10**10, (5 * 10**9,) * 2, stored="bf16"),
        "vae": ComponentShape(10**8, stored="bf16"),
    }
    found = make_plan(costs("flux"), shapes, card(7), Workload(512, 512))
    assert (found.precision, found.fits) == ("nf4", True)
    assert any(reason.startswith("precision nf4: bf16 does not fit (it needs ") for reason in found.reasons)


def test_impossible_says_what_is_missing_and_what_to_do() -> None:
    found = plan("flux-dev", card(8, 64), "bf16", "none")
    assert not found.fits
    assert "does not fit: it needs 35.6 GB of VRAM and 7.5 GB are free" in found.reasons
    assert found.reasons[-1].startswith("choose offload auto and precision auto, a smaller image")
    tiny = plan("flux-dev", card(1, 64))
    assert not tiny.fits
    assert any("of VRAM and 500 MB are free" in reason for reason in tiny.reasons)
    assert not plan("flux-dev", cpu(2)).fits


def test_unknown_choices_list_the_known() -> None:
    with pytest.raises(InvalidParameter, match="unknown precision 'int3'; use auto, bf16, fp16, fp32, fp8, int8, nf4"):
        plan("starter", cpu(8), "int3")
    with pytest.raises(
        InvalidParameter, match="unknown offload 'cpu'; use auto, none, model, stream, sequential, disk"
    ):
        plan("starter", cpu(8), offload="cpu")


def test_offload_frees_nothing_on_a_cpu_and_says_so() -> None:
    found = plan("flux-dev", cpu(64), "bf16", "stream")
    assert found.peak_ram == plan("flux-dev", cpu(64), "bf16", "none").peak_ram
    assert "offload stream: CPU computes in RAM, so moving weights frees nothing" in found.reasons
    assert denoiser(found).placement == "stream"


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("machine", [card(80), card(24), card(8), card(8, 12), cpu(64), cpu(16)], ids=str)
def test_leaner_plans_get_leaner_and_end(name: str, machine: Machine) -> None:
    model = MODELS[name]
    previous = found = plan(name, machine)
    taken = []
    while found is not None:
        taken.append(found.peak_vram if machine.own_memory else found.peak_ram)
        assert {part.storage for part in found.components.values()} == {
            part.storage for part in plan(name, machine).components.values()
        }
        previous, found = found, leaner(found, costs(model.family), model.components, machine, workload(model))
        if found is not None:
            assert "ran out of memory" in found.reasons[0]
    assert all(later < earlier for earlier, later in pairwise(taken))
    assert len(taken) < 20
    assert previous.offload in ("sequential", "disk", "none")
    if name == "flux-dev" and machine.own_memory:
        assert taken[-1] < 3 * GB


def test_leaner_gives_room_at_once() -> None:
    """It is tried once, so it must differ: at most 70 % of the memory, and tiles."""
    model = MODELS["flux-dev"]
    first = plan("flux-dev", card(24))
    second = leaner(first, costs("flux"), model.components, card(24), workload(model))
    assert second is not None
    assert second.peak_vram <= 0.7 * first.peak_vram
    assert second.vae_tile == 512


@pytest.mark.parametrize(("side", "tile"), [(512, None), (520, 512)])
def test_an_image_of_one_tile_is_not_decoded_in_tiles(side: int, tile: int | None) -> None:
    model = MODELS["flux-dev"]
    asked = workload(model, side)
    first = make_plan(costs(model.family), model.components, card(24), asked)
    second = leaner(first, costs(model.family), model.components, card(24), asked)
    assert second is not None
    assert second.vae_tile == tile


def test_a_step_takes_as_much_in_fp16_as_in_bf16_and_twice_as_much_in_fp32() -> None:
    fp16, bf16, fp32 = (sample_bytes(costs("sdxl"), 1024, 1024, compute) for compute in ("fp16", "bf16", "fp32"))
    assert fp16 == bf16 == pytest.approx(fp32 / 2)


def test_what_lacks_on_the_card_and_in_ram_adds_up() -> None:
    enough = LayoutCost(device=10 * GB, ram=20 * GB)
    budget = device_bytes(enough.device)
    machine = card(24, ram=ram_peak(enough) / GB)
    assert shortage(enough, machine, budget) == pytest.approx(0, abs=1)
    assert shortage(enough, machine, budget - GB) == pytest.approx(GB, abs=1)
    less_ram = replace(machine, free_ram=machine.free_ram - GB)
    assert shortage(enough, less_ram, budget - GB) == pytest.approx(2 * GB, abs=1)


def test_streaming_keeps_what_fits_and_counts_what_comes() -> None:
    small, large = plan("flux-dev", card(8)), plan("flux-dev", card(16))
    assert 0 < denoiser(small).resident_blocks < denoiser(large).resident_blocks < denoiser(large).blocks == 57
    assert small.pinned_ram > large.pinned_ram > 0
    assert small.components["text_encoder"].placement == "stage"
    assert small.components["text_encoder_2"].placement == "stream"


def test_what_computing_cannot_hide_is_lost() -> None:
    slow = plan("flux-dev", card(8, compute_rate=20e12), "bf16", "stream")
    fast = plan("flux-dev", card(8, compute_rate=400e12), "bf16", "stream")
    wide = plan("flux-dev", card(8, compute_rate=400e12, transfer_rate=50e9), "bf16", "stream")
    assert slow.transfer_seconds < 1.5  # T5, and what comes for its stage
    assert fast.transfer_seconds > 20
    assert fast.compute_seconds < slow.compute_seconds
    assert wide.transfer_seconds < fast.transfer_seconds / 2


def test_more_images_take_more_time_and_no_more_memory() -> None:
    one, four = (plan("flux-dev", card(8, compute_rate=400e12), "bf16", "stream", count=count) for count in (1, 4))
    assert one.peak_vram == four.peak_vram
    assert four.transfer_seconds > 3 * one.transfer_seconds


def test_a_gguf_file_stays_as_it_is() -> None:
    shapes = dict(MODELS["flux-dev"].components)
    shapes["transformer"] = replace(shapes["transformer"], stored="gguf", stored_bytes=6_800_000_000)
    for precision in ("auto", "bf16", "as-is"):
        found = make_plan(costs("flux"), shapes, card(12), Workload(1024, 1024), precision)
        assert (denoiser(found).storage, denoiser(found).bytes) == ("gguf", 6_800_000_000)
        assert any(reason.startswith("transformer is a GGUF file") for reason in found.reasons)


def test_kept_blocks_are_spread_evenly() -> None:
    assert spread([1] * 9, 3) == {2, 5, 8}
    assert spread([1, 1], 5) == {0, 1}
    ways = residency_options((3, 3, 3, 1, 1, 1))
    assert ways[0].bytes == ways[-1].streamed == 0
    assert [way.bytes for way in ways] == sorted(way.bytes for way in ways)
    assert blocks_on_device((3, 3, 3), 0) == 6
    assert blocks_on_device((3, 3, 3), 2) == 12
    assert blocks_on_device((3, 3, 3), 3) == 9


def test_a_pipeline_without_blocks_can_be_planned() -> None:
    shapes = {"text_encoder": ComponentShape(10**8), "unet": ComponentShape(10**9), "vae": ComponentShape(10**8)}
    for offload in OFFLOAD_CHOICES:
        found = make_plan(costs("sdxl"), shapes, card(8), Workload(512, 512), "auto", offload)
        assert found.fits
        assert denoiser(found).placement in ("resident", "stage", "sequential")


def test_table_and_json_say_the_same() -> None:
    found = plan("flux-dev", card(8))
    text = table(found)
    lines = text.splitlines()
    assert lines[0].split() == ["component", "type", "computed", "in", "where", "size"]
    assert f"streamed, {denoiser(found).resident_blocks} of 57 blocks stay" in text
    assert [line for line in lines if line.startswith("offload ")] == ["offload    stream"]
    assert all(f"- {reason}" in lines for reason in found.reasons)
    document = json.loads(json.dumps(as_json(found)))
    assert document["components"]["transformer"]["resident_blocks"] == denoiser(found).resident_blocks
    assert document["peak_vram"] == found.peak_vram


@pytest.mark.parametrize(("name", "size"), [("flux-dev", 12), ("sdxl-lightning", 6)])
@pytest.mark.parametrize("offload", ["auto", "stream", "disk", "sequential"])
def test_a_controlnet_larger_than_the_card_is_streamed(name: str, size: int, offload: str) -> None:
    """It keeps the blocks that fit, the denoiser none; with more room it comes whole."""
    model = MODELS[name]
    main = "transformer" if model.family == "flux" else "unet"
    guided = with_adapters(model.components, main, [published_control_shape(2 * size * GB, model.family)])
    small, large = (
        make_plan(costs(model.family), guided, card(vram), workload(model), "bf16", offload)
        for vram in (size, 4 * size)
    )
    assert small.fits
    assert small.peak_vram <= size * GB - CONTEXT_BYTES
    assert small.peak_ram > 2 * size * GB
    control = small.components["controlnet"]
    assert control.placement == "stream"
    assert control.resident_blocks < control.blocks
    assert denoiser(small).resident_blocks == 0 or small.offload == "sequential"
    assert large.components["controlnet"].placement in ("stage", "resident")
    assert large.transfer_seconds < small.transfer_seconds
    if offload == "stream":
        assert control.resident_blocks > 0
    for mode in ("none", "model"):
        assert not make_plan(costs(model.family), guided, card(size), workload(model), "bf16", mode).fits


@pytest.mark.parametrize("name", ["flux-dev", "sdxl-lightning"])
def test_adapters_take_their_room_before_the_run(name: str) -> None:
    model = MODELS[name]
    main = "transformer" if model.family == "flux" else "unet"
    control = published_control_shape(2 * GB, model.family)
    guided = with_adapters(model.components, main, [control], lora_bytes=GB)
    size = 16 if model.family == "flux" else 8
    for offload in ("none", "model", "sequential", "stream"):
        plain, more = (
            make_plan(costs(model.family), shapes, card(size, ram=64), workload(model), "bf16", offload)
            for shapes in (model.components, guided)
        )
        assert more.components["controlnet"].bytes == 2 * GB
        assert denoiser(more).bytes == pytest.approx(denoiser(plain).bytes + GB, abs=1000)
        assert more.peak_ram > plain.peak_ram + 2.9 * GB
        if offload == "stream":
            assert denoiser(more).resident_blocks < denoiser(plain).resident_blocks
            assert more.peak_vram <= size * GB
        elif offload != "sequential" or model.family == "flux":  # SDXL's peak is its decoding then
            assert more.peak_vram > plain.peak_vram + 0.9 * GB
    next_leaner = leaner(more, costs(model.family), guided, card(size, ram=64), workload(model))
    assert next_leaner is None or next_leaner.peak_vram < more.peak_vram
    first = make_plan(costs(model.family), model.components, card(48), workload(model))
    assert leaner(first, costs(model.family), guided, card(48), workload(model)) is not None


def test_what_a_family_says_of_its_parts_counts() -> None:
    """Another VAE, a larger text encoder: nothing of it is taken from a family that is known."""
    known = costs("flux")
    own = replace(known, encode_values=3 * known.encode_values, vae=VaeCosts(2 * 768, 2 * 650, 70_000_000))
    assert encode_bytes(own) == pytest.approx(3 * encode_bytes(known))
    assert decode_bytes(own, 1024, 1024) > 1.7 * decode_bytes(known, 1024, 1024)
    assert encode_image_bytes(own, 1024, 1024, "fp32") > 1.7 * encode_image_bytes(known, 1024, 1024, "fp32")
    machine, shapes = card(80), MODELS["flux-dev"].components
    plain, wide = (make_plan(family, shapes, machine, workload(MODELS["flux-dev"])) for family in (known, own))
    assert wide.peak_vram > plain.peak_vram + 1.5 * GB
