"""What a preset's networks cost, beside what the LDDGAN paper prints."""

from functools import partial

from lddgan_kernels.nn.summary import Summary, summarize
from lddgan_kernels.trainer import config_file, networks
from lddgan_kernels.trainer.config import Config

# GMAC of a generator's call: the paper's Table 2, and counted in the published code.
TABLE_2 = {"cifar10": 1.67, "celebahq256": 7.05, "lsun-church256": 27.3}
PUBLISHED = {"cifar10": 1.67, "celebahq256": 27.3, "lsun-church256": 7.05}
# Millions of its parameters.
PARAMETERS = {"cifar10": 33.3, "celebahq256": 48.4, "lsun-church256": 48.4}
# GMAC of the published decoder.
DECODER = {"celebahq256": 335.0, "lsun-church256": 311.0}
# Millions of parameters of a transformer and its decoder (Table 11); the decoder's alone.
TABLE_11 = {"cifar10-vit-tiny": 28.0, "cifar10-vit-mid": 43.3, "cifar10-vit-large": 56.2}
TABLE_11_DECODER = 8.6
# FID, recall, and seconds for 100 images on an A5000.
RESULTS = {
    "cifar10": (2.98, 0.58, 0.08),
    "celebahq256": (5.21, 0.40, 0.55),
    "lsun-church256": (4.67, 0.42, 1.02),
}


def model_report(preset: str) -> list[str]:
    """Lines on a preset (or the path of a TOML file): networks, their blocks, the paper's figures.

    Raises:
        ValueError: there is no such preset, or its networks do not fit each other.
    """
    config = config_file.load(preset)
    networks.validate(config)
    costs = network_costs(config)
    lines = [f"{preset}: for one image, in float32", ""]
    lines.append(
        f"{'network':14s}{'parameters':>14s}{'GMAC':>10s}{'sampling':>12s}{'training':>12s}"
    )
    for name, cost in costs.items():
        lines.append(
            f"{name:14s}{cost.parameters:14,d}{cost.macs / 1e9:10.3f}"
            f"{cost.peak_bytes / 2**20:8.1f} MiB{cost.kept_bytes / 2**20:8.1f} MiB"
        )
    lines += ["", "GMAC: 10^9 multiplications of a call: convolutions, linear layers, attention"]
    lines.append("sampling: most activation memory alive at once; training: kept for gradients")
    total, parts = 0, []
    if "generator" in costs:
        steps = networks.calls(config)
        total += steps * costs["generator"].macs
        parts.append(f"{steps} calls of the generator")
    if "decoder" in costs:
        total += costs["decoder"].macs
        parts.append("one of the decoder")
    formula = " and ".join(parts)
    lines += [f"a sample: {total / 1e9:.2f} GMAC, {formula}", "", *_beside(preset, costs), ""]
    for name, cost in costs.items():
        lines += [*_table(name, cost), ""]
    return lines[:-1]


def network_costs(config: Config) -> dict[str, Summary]:
    """What each network of a configuration costs."""
    latent = (1, *networks.latent_shape(config))
    images = (1, config.images.channels, config.images.resolution, config.images.resolution)
    z = (1, config.generator.z_dim)
    costs = {}
    if config.method != "vae":
        costs["generator"] = summarize(partial(networks.build_generator, config), [latent, (1,), z])
    if config.method == "gan":
        costs["discriminator"] = summarize(
            partial(networks.build_discriminator, config), [latent, (1,), latent]
        )
    if config.codec == "autoencoder":
        build = partial(networks.build_autoencoder, config)
        costs["encoder"] = summarize(build, [images], "encode")
        costs["decoder"] = summarize(build, [latent], "decode")
    return costs


def _table(name: str, cost: Summary) -> list[str]:
    lines = [f"{name + ':':48s}{'parameters':>12s}{'MMAC':>12s}  output"]
    for row in cost.rows:
        shape = "x".join(map(str, row.output))
        title = f"{row.name} ({row.kind})" if row.name else f"{row.kind} itself"
        lines.append(f"  {title:46s}{row.parameters:12,d}{row.macs / 1e6:12.2f}  {shape}")
    return lines


def _beside(preset: str, costs: dict[str, Summary]) -> list[str]:
    """The paper's figures, each disagreement said."""
    lines = ["Beside the LDDGAN paper:"]
    if preset in TABLE_2:
        generator = costs["generator"]
        ours, table, code = generator.macs / 1e9, TABLE_2[preset], PUBLISHED[preset]
        lines.append(
            f"  parameters of the generator: {PARAMETERS[preset]} M there, "
            f"{generator.parameters / 1e6:.1f} M here"
        )
        lines.append(
            f"  GMAC of a call: {table} in its Table 2, {code} in its code, {ours:.2f} here"
        )
        if table != code:
            lines.append("    DISAGREES: Table 2 seems to have CelebA-HQ and LSUN Church swapped")
        lines.append(
            "    fewer here: blocks that double the resolution project their shortcut before"
        )
        if preset in DECODER:
            lines.append(
                f"  GMAC of the decoder: {DECODER[preset]:.0f} in its code, "
                f"{costs['decoder'].macs / 1e9:.0f} here"
            )
            lines.append(
                "    fewer here: doubling and its 3x3 convolution are one, with 4 of 9 products"
            )
        fid, recall, seconds = RESULTS[preset]
        lines.append(
            f"  reported there: FID {fid}, recall {recall}, {seconds} s for 100 images on an A5000"
        )
        lines.append(
            "  training: as in its Tables 8 and 9; its scripts DISAGREE with them (z of 50 or 100, "
            "3 blocks for LSUN Church, smaller batches)"
        )
    elif preset in TABLE_11:
        decoder = costs["decoder"].parameters / 1e6
        ours = costs["generator"].parameters / 1e6
        lines.append(
            f"  parameters: {TABLE_11[preset]} M in its Table 11, {TABLE_11_DECODER} M of them the "
            f"decoder's; here {ours + decoder:.1f} M, {decoder:.1f} M the decoder's"
        )
        lines.append("  depth and widths are not printed there: those here meet its sums")
    else:
        lines.append("  it prints no costs for this one")
    return lines
