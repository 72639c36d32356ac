"""Recipes of networks that take a trimap."""

from dataclasses import replace

from mattecompress.training.rates import LayerRates
from mattecompress.training.recipe import Recipe, Routing, Stage

RATE, LAYER_DECAY, BLOCKS = 5e-4, 0.65, 12


def falling(steps: tuple[int, int, int], routing: Routing | None = None) -> tuple[Stage, ...]:
    """Three stages of ViTMatte-S, at the whole rate, a tenth and a twentieth of it."""
    rates = [LayerRates(RATE * factor, LAYER_DECAY, BLOCKS) for factor in (1, 0.1, 0.05)]
    return tuple(
        Stage(count, 16, 1, 512, 512, rate, routing=routing) for count, rate in zip(steps, rates, strict=True)
    )


SMALL = Stage(400, 4, 1, 128, 128, LayerRates(2e-3, 0.9, BLOCKS), fade=0.05, bfloat16=False)

TRIMAP_RECIPES = {
    "vitmatte": Recipe(
        model="vitmatte-small",
        stages=falling((40406, 80812, 13469)),
        warmup=250,
        weight_decay=0.1,
    ),
    "vitmatte-small": Recipe(
        model="vitmatte-tiny", stages=(SMALL,), warmup=50, weight_decay=0.1, clip_norm=1.0, erosion=6
    ),
    "mematte": Recipe(
        model="mematte-small",
        stages=falling((8081, 26937, 5388), Routing()),
        warmup=250,
        weight_decay=0.1,
        teacher="vitmatte-small",
    ),
    "mematte-small": Recipe(
        model="mematte-tiny",
        stages=(replace(SMALL, routing=Routing(distillation=10.0, compression=60.0, noisy=0.5)),),
        warmup=50,
        weight_decay=0.1,
        clip_norm=1.0,
        teacher="vitmatte-tiny",
        erosion=6,
    ),
}
"""`mematte` has the lengths, rates and weights of MEMatte-S (AAAI 2025, and its published program), `vitmatte` those of
ViTMatte-S, at batches of 16 for each of two processes; pictures are drawn otherwise, and the rate rises from 1/250 of
itself instead of 1/1000. The small ones are our own, of a network for tests, for minutes on one CPU core."""
