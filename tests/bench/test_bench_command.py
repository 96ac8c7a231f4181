"""``fastnets bench``: the page, the comparison, and what is said of bad input."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import resource
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.category import StrCategoryConverter
from matplotlib.image import imread

from fastnets.cli import main
from fastnets.cli.bench import figures
from fastnets.cli.bench.page import duration
from fastnets.cli.bench.run_file import Spread, _run_of, groups, read

RUN = Path(__file__).with_name("run.json")  # made up, for these tests


@pytest.fixture
def document():
    return json.loads(RUN.read_text())


@pytest.fixture
def changed(document, tmp_path):
    """Writes the run with our time in its first case multiplied, and its spreads; returns the file."""

    def write(factor, scatter=1.0):
        new = copy.deepcopy(document)
        case = new["benchmarks"][0]["extra_info"]
        for ratio in case["ratios"].values():
            half = scatter * (ratio["p80"] - ratio["p20"]) / 2
            ratio["median"] /= factor
            ratio["p20"], ratio["p80"] = ratio["median"] - half, ratio["median"] + half
        file = tmp_path / "new.json"
        file.write_text(json.dumps(new))
        return str(file)

    return write


def test_spread_of_known_figures():
    assert Spread.of([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0, 6)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 1)


def test_read():
    run = read(str(RUN))
    assert [len(members) for members in groups(run.cases).values()] == [2, 1, 1, 3, 1]  # overhead is no race
    assert run.cases[0].ratio == 2.0 and run.cases[0].ratios["contiguous"].median == 4.0
    assert run.bandwidth[1 << 28] == 3e10


# ---- the page --------------------------------------------------------------------------------


class Page(HTMLParser):
    """Fails where tags do not match; collects the text of cells, and what would be fetched."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.fetched = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert main(["bench", "report", str(RUN), "-o", str(folder / "page.html"), "--png", str(folder / "png")]) == 0
    return folder


def test_page_is_whole_and_alone(page):
    text = (page / "page.html").read_text()
    parsed = Page(text)
    assert parsed.fetched == []
    assert re.findall(r"url\((?!#)|@import|<script|<link", text) == []
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "#010203" not in text and "#040506" not in text  # the stand-ins for the page's colours


def test_page_says_it_all(page):
    text = (page / "page.html").read_text()
    rows = Page(text).rows
    summary = [row for row in rows if len(row) == 6]
    assert [float(row[0]) for row in summary] == [1.22, 1.5, 2.0, 2.0]  # sqrt(2 · 0.75) first
    losses = text[text.index('id="losses"') : text.index("</section>", text.index('id="losses"'))]
    assert "1 of 7 cases" in losses and ">0.75<" in losses and "960x7x7" in losses
    for fact in (
        "uncertain by more than 2%",
        "0123456789abcdef",
        "Made-up CPU",
        "openvino is not installed",
        "30 GB/s",
    ):
        assert fact in text
    assert ["depthwise_conv2d", "openvino", "openvino is not installed", "2"] in rows
    assert "2 groups &lt;&amp;&gt;" in text  # a name is not markup


def test_every_figure_is_drawn(page):
    names = {file.stem for file in (page / "png").iterdir()}
    ops = {"op_depthwise_conv2d", "op_channel_shuffle", "op_networks", "op_itself"}
    assert names == {"roofline", "bandwidth", "batch_mobilenet_v2"} | ops
    assert (page / "png" / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert (page / "page.html").read_text().count("<svg") == len(names)


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (1e-3, "1 ms"), (4.56e-5, "45.6 µs")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ---- the comparison --------------------------------------------------------------------------


def test_a_run_is_like_itself(capsys):
    assert main(["bench", "compare", str(RUN), str(RUN)]) == 0
    assert capsys.readouterr().out == "8 cases in both: 0 slower, 0 faster, 8 alike; speed 1.000x\n"


def test_slower_beyond_threshold_and_noise(changed, capsys):
    assert main(["bench", "compare", str(RUN), changed(1.25)]) == 1
    out = capsys.readouterr().out
    assert "   0.80x  depthwise_conv2d: forward, batch 1: 32x112x112 3x3/1  (2.00 to 1.60 against channels_last)" in out
    assert main(["bench", "compare", str(RUN), changed(1.25), "--threshold", "30"]) == 0


def test_slower_within_noise_is_alike(changed, capsys):
    assert main(["bench", "compare", str(RUN), changed(1.25, scatter=20)]) == 0
    assert "0 slower, 0 faster" in capsys.readouterr().out


def test_faster(changed, capsys):
    assert main(["bench", "compare", str(RUN), changed(0.5)]) == 0
    out = capsys.readouterr().out
    assert "   2.00x  depthwise_conv2d" in out and "0 slower, 1 faster, 7 alike" in out


def test_an_interrupted_run_is_told(document, tmp_path, capsys):
    document["fastnets"]["provenance"]["interrupted"] = "after 9 of 12 cases"
    (tmp_path / "new.json").write_text(json.dumps(document))
    assert main(["bench", "compare", str(RUN), str(tmp_path / "new.json")]) == 0
    assert capsys.readouterr().out.startswith("the new run was interrupted after 9 of 12 cases\n")


def test_the_peer_is_the_same_in_both(document, tmp_path, capsys):
    """Another peer becomes the fastest: our speed has not changed."""
    case = document["benchmarks"][0]["extra_info"]
    case["peer"], case["ratio"] = "contiguous", 1.0
    case["ratios"]["contiguous"] = {"median": 1.0, "p20": 1.0, "p80": 1.0, "count": 30}
    file = tmp_path / "new.json"
    file.write_text(json.dumps(document))
    assert main(["bench", "compare", str(RUN), str(file)]) == 0


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        ("{", "is not JSON"),
        ("[]", "is not a run"),
        ('{"benchmarks": []}', "is not a run"),
        ('{"benchmarks": [{"extra_info": {"ratio": 1}}], "fastnets": {"ceilings": {}}}', "is not a run"),
        ('{"benchmarks": null, "fastnets": null}', "is not a run"),
        ("[" * 100_000, "is not JSON: maximum recursion"),
    ],
)
@pytest.mark.parametrize("action", (["report", "-o", "page.html"], ["compare", str(RUN)]), ids=lambda a: a[0])
def test_bad_run_is_one_line(tmp_path, monkeypatch, capsys, action, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("bad.json").write_text(content)
    assert main(["bench", *action, "bad.json"]) == 2
    assert re.fullmatch(rf"fastnets bench: error: .*{message}.*\n", capsys.readouterr().err)


def altered(document, change):
    """The document with one value replaced: a path of keys, and what it becomes; ... takes it away."""
    *path, last, value = change
    place = document
    for key in path:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


ABOUT, FIRST = ("fastnets",), ("benchmarks", 0, "extra_info")
CHANGES = [
    ((*ABOUT, "provenance", {}), "lacks 'commit'"),
    ((*ABOUT, "provenance", "gpu", ...), "lacks 'gpu'"),
    ((*ABOUT, "provenance", "versions", None), "NoneType"),
    ((*ABOUT, "ceilings", "bandwidth", {}), "ceilings are missing"),
    ((*ABOUT, "ceilings", "rate", {}), "ceilings are missing"),
    ((*ABOUT, "ceilings", "rate", {"float32": "fast"}), "rate in float32 is 'fast', not a number above 0"),
    ((*ABOUT, "warnings", None), "warnings has None in place of a text"),
    ((*ABOUT, "warnings", [3]), "warnings has 3 in place of a text"),
    ((*FIRST, "ratio", 0), "ratio is 0, not a number above 0"),
    ((*FIRST, "ratio", "fast"), "ratio is 'fast'"),
    ((*FIRST, "ratio", float("nan")), "ratio is nan"),
    ((*FIRST, "bytes", 0), "bytes is 0"),
    ((*FIRST, "group", 3), "case has 3 in place of a text"),
    ((*FIRST, "share", ...), "lacks 'share'"),
    ((*FIRST, "times", "fastnets", "median", 0.0), "median is 0.0"),
    ((*FIRST, "times", "fastnets", ...), "has no times of fastnets and its peers"),
    ((*FIRST, "ratios", "contiguous", "count", 0), "count is 0"),
    ((*FIRST, "ratios", "contiguous", "median", -1), "median is -1"),
    ((*FIRST, "peer", "gone"), "has no times of fastnets and its peers"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("action", (["report", "-o", "page.html"], ["compare", str(RUN)]), ids=lambda a: a[0])
def test_malformed_run_is_one_line(document, tmp_path, monkeypatch, capsys, action, change, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text(json.dumps(altered(document, change)))
    assert main(["bench", *action, "bad.json"]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"fastnets bench: error: bad\.json is not a run of .*: .*{re.escape(message)}.*\n", err)


def test_networks_without_some_peers_are_drawn(document):
    """A candidate that a network lacks has no place in its figure."""
    for benchmark in [*document["benchmarks"]]:
        if benchmark["extra_info"].get("op") == "networks":
            other = copy.deepcopy(benchmark)
            other["extra_info"]["group"] = "another"
            for field in ("times", "ratios"):
                other["extra_info"][field].pop("openvino bfloat16", None)
            document["benchmarks"].append(other)
            foreign = copy.deepcopy(benchmark)
            foreign["extra_info"] |= {"group": "a third", "case": "one photo"}
            document["benchmarks"].append(foreign)
    drawings = figures.draw(_run_of(document))
    assert {"batch_mobilenet_v2", "batch_another"} <= set(drawings) and "batch_a third" not in drawings
    for name, lines in (("batch_mobilenet_v2", 4), ("batch_another", 3)):
        (axes,) = drawings[name].figure.axes
        assert len(axes.get_legend().get_texts()) == lines == len(axes.get_lines())
        assert not isinstance(axes.xaxis.get_converter(), StrCategoryConverter)


def test_pictures_have_light_lines(tmp_path):
    drawing = figures.draw(read(str(RUN)))["bandwidth"]
    (tmp_path / "a.png").write_bytes(drawing.png())
    pixels = (imread(tmp_path / "a.png")[..., :3] * 255).round().astype(int)
    light, dark = ((pixels == colour).all(-1).sum() for colour in ([0xD4, 0xDA, 0xE3], [4, 5, 6]))
    assert light > 20 * dark  # the edges of black letters have all greys
    assert "var(--grid)" in drawing.svg()  # after it as well


def test_nothing_was_raced(document, tmp_path, capsys):
    document["benchmarks"] = []
    (tmp_path / "empty.json").write_text(json.dumps(document))
    assert main(["bench", "compare", str(RUN), str(tmp_path / "empty.json")]) == 2
    assert "has no case that was raced" in capsys.readouterr().err


@pytest.mark.parametrize("which", ("old", "new"))
def test_a_quick_run_is_not_compared(document, tmp_path, capsys, which):
    document["fastnets"]["quick"] = True
    (tmp_path / "quick.json").write_text(json.dumps(document))
    runs = {"old": str(RUN), "new": str(RUN)} | {which: str(tmp_path / "quick.json")}
    assert main(["bench", "compare", *runs.values()]) == 2
    message = f"fastnets bench: error: the {which} run was one with --quick, whose times mean nothing\n"
    assert capsys.readouterr().err == message


def test_nothing_in_common(document, tmp_path, capsys):
    document["benchmarks"] = document["benchmarks"][:1]
    document["benchmarks"][0]["extra_info"]["case"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(document))
    assert main(["bench", "compare", str(RUN), str(tmp_path / "other.json")]) == 2
    assert "no case with a common peer" in capsys.readouterr().err


def test_output_that_cannot_be_written(page, tmp_path, capsys):
    assert main(["bench", "report", str(RUN), "-o", str(tmp_path / "none" / "page.html")]) == 2
    said = r"fastnets bench: error: --output: .*page\.html cannot be written: No such file or directory\n"
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", ""], "--output: the name of the file is empty"),
        (["-o", "."], "--output: . is a directory, a pipe or a device"),
        (["-o", "./run.json"], "--output names the run, which it would overwrite"),
        (["-o", "link.json"], "--output names the run, which it would overwrite"),
        (["-o", "page.html", "--png", "run.json"], "--png: run.json cannot be made: File exists"),
    ],
)
def test_wrong_output(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("run.json").write_bytes(RUN.read_bytes())
    Path("link.json").symlink_to("run.json")
    assert main(["bench", "report", "run.json", *options]) == 2
    assert capsys.readouterr().err == f"fastnets bench: error: {message}\n"
    assert Path("run.json").read_bytes() == RUN.read_bytes()


@pytest.fixture
def small_disk():
    """No file may have more than 1000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_page_that_does_not_fit_leaves_the_old_one(page, tmp_path, small_disk, capsys):
    old = tmp_path / "page.html"
    old.write_text("an older one")
    assert main(["bench", "report", str(RUN), "-o", str(old)]) == 2
    assert capsys.readouterr().err == f"fastnets bench: error: --output: {old} cannot be written: File too large\n"
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an older one"]


def test_without_matplotlib(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "report", str(RUN), "-o", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == "fastnets bench: error: matplotlib is not installed: pip install matplotlib\n"


@pytest.mark.parametrize("value", ("x", "-1", "nan"))
def test_threshold_is_a_percentage(value, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "compare", "a", "b", f"--threshold={value}"])
    assert stop.value.code == 2 and "is not a percentage" in capsys.readouterr().err
