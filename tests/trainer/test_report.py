"""The report: what is in it, that nothing raw or empty is, and its charts' geometry."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from lddgan_kernels.trainer import charts, closer_look, report
from lddgan_kernels.trainer.folder import RunFolder
from lddgan_kernels.trainer.log import read_lines
from lddgan_kernels.trainer.network_files import load_system
from lddgan_kernels.trainer.report_text import duration, stage_times
from lddgan_kernels.trainer.run import train
from tests.trainer.tiny import tiny


class Checked(HTMLParser):
    """Fails on what is not closed; collects cells, headings and text."""

    VOID = ("meta", "img", "path", "circle", "polyline")

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.headings, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append((tag, dict(attributes).get("class"), ""))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            tag, kind, text = self.cells[-1]
            self.cells[-1] = tag, kind, text + data
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if self.open and self.open[-1] not in ("style", "pre"):
            self.text.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    log = {"score_every": 4, "scored": 12}
    train(tiny(autoencoder={"codebook_size": 0}, log=log), folder)
    return RunFolder(folder)


def test_a_report_says_everything_in_words(finished):
    page = Checked()
    page.feed(finished.report.read_text())
    assert not page.open
    assert page.headings == [
        *("out", "Samples", "Scores", "Losses", "Autoencoder", "Diffusion GAN"),
        *("A closer look", "Times", "Where it ran", "Configuration"),
    ]
    assert all(text.strip() for tag, kind, text in page.cells if kind != "text"), "an empty row"
    text = " ".join(page.text)
    keys = {name for line in read_lines(finished.log) for name in line}
    raw = [key for key in keys if "_" in key and key in text]
    assert not [key for key in raw if key != "lddgan_kernels"], raw
    assert "trained on the 24 of digits" in text
    assert "By the judge of digits, after 72 training images" in text
    for wanted in ("Readable samples", "Frechet distance", "PyTorch", "processor", "In all"):
        assert wanted in text
    assert "score_every = 4" in finished.report.read_text()


def test_a_run_under_way_has_a_report_too(finished, tmp_path):
    folder = RunFolder(tmp_path)
    folder.samples.mkdir()
    folder.config.write_text(finished.config.read_text())
    first = finished.log.read_text().splitlines()[:1]
    folder.log.write_text("\n".join(first) + "\n")
    report.write_report(folder)
    page = Checked()
    page.feed(folder.report.read_text())
    assert page.headings == ["test_a_run_under_way_has_a_rep0", "Where it ran", "Configuration"]
    assert "The run is under way." in " ".join(page.text)


def test_times_of_the_stages():
    lines = [
        {"kind": "start", "seconds": 0.1},
        *(
            {"kind": "step", "stage": "autoencoder", "images_per_second": v, "seconds": s}
            for v, s in ((10, 5.0), (30, 10.0), (20, 60.0))
        ),
        {"kind": "latents", "seconds": 62.0},
        {"kind": "step", "stage": "gan", "images_per_second": 7, "seconds": 3662.0},
        {"kind": "scores", "took": 100.0, "seconds": 3762.0},
        {"kind": "summary", "seconds": 3770.0},
    ]
    assert stage_times(lines) == [
        ("Autoencoder", "1 min 00 s", "20 images/s"),
        ("Encoding the images", "2.0 s", ""),
        ("Diffusion GAN", "1 h 01 min, 1 min 40 s of it scores", "7 images/s"),
        ("Samples, scores and report", "8.0 s", ""),
        ("In all", "1 h 02 min", ""),
    ]
    assert duration(59.94) == "59.9 s"


@pytest.mark.parametrize(
    "points",
    [[(0, 1.0)], [(0, 5.0), (10, 5.0)], [(1, -3e-7), (2, 4e-7)], [(100, 1e6), (5000, 2.5e6)]],
)
def test_charts_have_room_around_their_curves(points):
    svg = charts.chart("Loss <1>", "steps", "loss", {"a&b": points})
    assert "Loss &lt;1&gt;" in svg
    (line,) = re.findall(r'polyline points="([^"]+)"', svg)
    for x, y in (map(float, place.split(",")) for place in line.split()):
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP < y <= charts.HEIGHT - charts.BOTTOM
    for label in re.findall(r'text-anchor="(?:end|middle)">([^<]+)</text>', svg)[:-2]:
        assert float(label.replace(",", "")) == pytest.approx(float(label.replace(",", "")))
    assert svg.count('text-anchor="end"') >= 2


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (-0.3, 0.7), (1234, 98765), (1e-6, 3e-6)):
        found = charts.ticks(low, high)
        assert 3 <= len(found) <= 11
        assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
        assert len(set(found)) == len(found)


def test_neighbours_of_a_copy_are_the_copy(finished, monkeypatch):
    system = load_system(finished.generator, "cpu")
    dataset = torch.randint(0, 256, (20, 1, 16, 16), dtype=torch.uint8)
    monkeypatch.setattr(type(system), "__call__", lambda self, seeds: dataset[seeds + 3])
    shown = closer_look.neighbours(system, dataset)
    pixels, gap = 48, 2
    first = shown[:, gap : gap + pixels, gap : gap + pixels]
    second = shown[:, gap : gap + pixels, 2 * gap + pixels : 2 * (gap + pixels)]
    assert first.equal(second)


def test_an_interpolation_begins_and_ends_with_the_seeds(finished):
    system = load_system(finished.generator, "cpu")
    shown, samples = closer_look.interpolations(system), system(torch.arange(2))
    size, gap = 48, 2
    row = gap + (size + gap)  # the second row: all noise moves
    last = gap + (closer_look.STATIONS - 1) * (size + gap)
    for left, sample in ((gap, samples[0]), (last, samples[1])):
        found = shown[0, row : row + size : 3, left : left + size : 3].int()
        assert (found - sample[0].int()).abs().max() <= 1
    first_row = shown[0, gap : gap + size : 3, gap : gap + size : 3].int()
    assert (first_row - samples[0, 0].int()).abs().max() <= 1


def test_the_log_says_where_and_how(finished):
    start = json.loads(finished.log.read_text().splitlines()[0])
    assert start["environment"]["PyTorch"] == torch.__version__
    assert start["command"] == ""  # made from Python
