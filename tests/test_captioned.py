"""Captions of images, as MS-COCO and CC3M publish them, become latents with captions."""

import json
import re

import pytest
import torch

from cfm_lite import cli
from cfm_lite.data.latents import Latents
from cfm_lite.data.latents.captions import captioned, one_each, read_captions
from cfm_lite.errors import ConfigError, DataError
from tests.pictures import picture

COCO = {
    "images": [{"id": 7 - i, "file_name": f"{i}.png"} for i in range(6)],
    "annotations": [
        {"image_id": 7, "caption": " a dog\non a mat "},
        {"image_id": 7, "caption": "a brown dog"},
        {"image_id": 6, "caption": "a cat"},
        {"image_id": 5, "caption": "two cats"},
        {"image_id": 3, "caption": ""},
        {"image_id": 2, "caption": "a bird that is not in the folder"},
        {"image_id": 99, "caption": "a fish"},
    ],
}


def coco_with(*annotations):
    return json.dumps(COCO | {"annotations": annotations})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Images 0 to 4 of the six that the JSON lists, and one that it does not."""
    (tmp_path / "pictures").mkdir()
    for name in ("0", "1", "2", "3", "4", "other"):
        picture(len(name)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "coco.json").write_text(json.dumps(COCO), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_published_json_gives_the_captions_of_each_image(home):
    found, lost = read_captions("coco.json")
    assert found["0.png"] == ("a dog on a mat", "a brown dog")
    assert found["3.png"] == ()
    assert list(found) == sorted(found)
    assert lost == ["a fish"]


def test_what_has_no_image_or_no_caption_is_left_out_and_listed(home):
    folder, left_out = captioned("coco.json", "pictures")
    assert [(image.key, len(image.captions)) for image in folder.files] == [
        ("0.png", 2),
        ("1.png", 1),
        ("2.png", 1),
    ]
    assert left_out == {
        f"with captions but not in {folder.root}": ["5.png"],
        "images without a caption": ["3.png", "4.png", "other.png"],
        "captions of no listed image": ["a fish"],
    }


def test_a_tsv_of_caption_and_file_gives_the_same(home):
    rows = ["a dog on a mat\t0.png", "a brown dog\t0.png", "a cat\t1.png"]
    (home / "cc3m.tsv").write_text("\n".join(rows), encoding="utf-8")
    assert read_captions("cc3m.tsv")[0] == {
        "0.png": ("a dog on a mat", "a brown dog"),
        "1.png": ("a cat",),
    }


def test_a_captions_file_may_end_in_capitals_and_lie_at_home(home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    (home / "CC3M.TSV").write_text("a dog\t0.png\n", encoding="utf-8")
    (home / "said.JSONL").write_text('{"file_name": "0.png", "text": "a dog"}\n', encoding="utf-8")
    for name in ("CC3M.TSV", "~/CC3M.TSV", "~/said.JSONL"):
        assert read_captions(name)[0] == {"0.png": ("a dog",)}


def test_a_name_may_begin_with_a_dot_or_be_a_whole_path(home):
    whole = home / "pictures" / "1.png"
    rows = ["a dog\t./0.png", f"a cat\t{whole}", "a brown dog\t0.png"]
    (home / "dot.tsv").write_text("\n".join(rows), encoding="utf-8")
    assert [(file.key, file.captions) for file in captioned("dot.tsv", "pictures")[0].files] == [
        ("0.png", ("a dog", "a brown dog")),
        ("1.png", ("a cat",)),
    ]


def test_names_may_begin_at_the_folder_that_is_given_where_its_train_is_taken(home):
    """train2014/a.png is in the folder that is given; of it, only train2014/ is read."""
    for place in ("coco/train2014", "coco/val2014"):
        (home / place).mkdir(parents=True)
        picture(1).save(home / place / "a.png")
    picture(2).save(home / "coco" / "train2014" / "b.png")
    rows = ["a dog\ttrain2014/a.png", "a cat\t./train2014/b.png", "a bird\tval2014/a.png"]
    (home / "both.tsv").write_text("\n".join(rows), encoding="utf-8")
    folder, left_out = captioned("both.tsv", "coco")
    assert folder.root.name == "train2014"
    assert [(file.key, file.captions) for file in folder.files] == [
        ("a.png", ("a dog",)),
        ("b.png", ("a cat",)),
    ]
    assert left_out == {f"with captions but not in {folder.root}": ["val2014/a.png"]}
    (home / "plain.tsv").write_text("a dog\ta.png\na cat\tb.png\n", encoding="utf-8")
    assert (
        captioned("plain.tsv", "coco")[0].files == folder.files
    )  # names below train2014/, as published


def test_half_of_an_emoji_costs_its_character_and_not_the_set(home):
    """A caption that another program cut. Its text could not be written as UTF-8."""
    broken = {"image_id": 7, "caption": "a dog \ud83d on a mat"}
    whole = {"image_id": 6, "caption": "a cat \U0001f600"}
    (home / "cut.json").write_text(coco_with(broken, whole), encoding="utf-8")
    assert "\\ud83d on" in (home / "cut.json").read_text()
    found, _ = read_captions("cut.json")
    assert found["0.png"] == ("a dog \ufffd on a mat",)
    assert found["1.png"] == ("a cat \U0001f600",)
    words = "scale prepare --images pictures --captions cut.json --out L --vae tiny --size 32"
    assert cli.main(words.split()) == 0
    assert Latents("L").captions == [found["0.png"], found["1.png"]]


@pytest.mark.parametrize("keys", [("file_name", "text"), ("image", "caption")])
def test_lines_of_json_give_the_same_and_leave_out_the_same(home, keys):
    names = {image["id"]: image["file_name"] for image in COCO["images"]}
    rows = [(names.get(row["image_id"]), row["caption"]) for row in COCO["annotations"]]
    lines = [json.dumps({**dict(zip(keys, row)), "url": "u"}) for row in [*rows, ("4.png", None)]]
    # a paragraph sign is a character of a caption like any other, and no end of its line
    text = "\n".join(lines).replace("two cats", "two\u2029cats") + "\n\n"
    (home / "metadata.jsonl").write_text(text, encoding="utf-8")
    assert captioned("metadata.jsonl", "pictures") == captioned("coco.json", "pictures")
    assert one_each("metadata.jsonl", 3) == one_each("coco.json", 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "a dog\t0.png\n"),
        ("a.json", coco_with({"image_id": 7, "caption": "a dog"})),
        ("a.jsonl", '{"image": "0.png", "caption": "a dog"}\n'),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_caption(home, name, content):
    (home / name).write_text(content, encoding="utf-8-sig")
    assert read_captions(name)[0]["0.png"] == ("a dog",)


def test_a_caption_that_is_null_is_none_in_json_as_in_lines_of_json(home):
    none, dog = {"image_id": 7, "caption": None}, {"image_id": 6, "caption": "a dog"}
    (home / "a.json").write_text(coco_with(none, dog), encoding="utf-8")
    lines = ['{"image": "0.png", "caption": null}', '{"image": "1.png", "caption": "a dog"}']
    (home / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in ("a.json", "a.jsonl"):
        found, _ = read_captions(name)
        assert (found["0.png"], found["1.png"]) == ((), ("a dog",))


GOOD = '{"image": "0.png", "caption": "a dog"}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "{", "cannot be read as captions"),
        ("a.json", '{"images": []}', "no 'annotations'"),
        ("a.json", "[1]", "[1] is not a JSON object"),
        ("a.json", '{"images": 3, "annotations": []}', "images is 3, not a list"),
        ("a.json", '{"images": [3], "annotations": []}', "row 1 of images: 3 is not a JSON object"),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "row 1 of images: no 'file_name'"),
        ("a.json", coco_with({"image_id": 7}), "row 1 of annotations: no 'caption'"),
        (
            "a.json",
            coco_with({"image_id": 7, "caption": "a dog"}, {"image_id": [7], "caption": "a dog"}),
            "row 2 of annotations: image_id is [7], not a number or a text",
        ),
        (
            "a.json",
            json.dumps(COCO | {"images": [*COCO["images"], {"id": 7, "file_name": "b.png"}]}),
            "row 7 of images: the id 7 is '0.png' above, and 'b.png' here",
        ),
        ("a.json", '{"images": [], "annotations": []}', "holds no caption of any image"),
        (
            "a.json",
            coco_with({"image_id": 7, "caption": "a dog"}, {"image_id": 1, "caption": 3}),
            "row 2 of annotations: caption is 3, not a text",
        ),
        ("a.tsv", "a dog\n", "line 1: 1 columns"),
        ("a.tsv", "a dog\thttp://a.org/0.png\n", "line 1: 'http://a.org/0.png' is an address"),
        ("a.jsonl", GOOD + "{", "line 2: Expecting"),
        ("a.jsonl", GOOD + "[3]", "line 2: [3] is not a JSON object"),
        ("a.jsonl", GOOD + GOOD.replace("caption", "txt"), "line 2: none of caption, text"),
        ("a.jsonl", GOOD.replace("image", "url"), "line 1: none of file_name, image"),
        ("a.jsonl", GOOD.replace("}", ', "text": "a"}'), "line 1: caption and text"),
        ("a.jsonl", GOOD.replace("}", ', "image": "a"}'), "line 1: it gives 'image' twice"),
        ("a.jsonl", GOOD.replace('"a dog"', "3"), "line 1: caption is 3, not a text"),
        ("a.jsonl", GOOD.replace("0.png", "s3://0.png"), "line 1: 's3://0.png' is an address"),
        ("a.jsonl", GOOD.replace("a dog", ""), "holds no caption of any image"),
        ("a.json", GOOD + GOOD, "JSON lines (.jsonl)"),
        ("none.json", None, "No such file"),
        ("a.tsv", "a dog\tnowhere.png\n", "such as 'nowhere.png'. Give the folder that holds it"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused_in_one_line(home, name, content, words):
    if content is not None:
        (home / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(words)) as error:
        captioned(name, "pictures")
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_one_random_caption_an_image_is_the_same_for_the_same_seed(home):
    many = [one_each("coco.json", seed) for seed in range(20)]
    assert {chosen[0] for chosen in many} == {"a dog on a mat", "a brown dog"}
    assert {chosen[1:3] for chosen in many} == {("a cat", "two cats")}
    assert many[3] == one_each("coco.json", 3)
    assert len(many[0]) == 4  # in the file's order, with the image that the folder lacks


class Letters:
    """An encoder of captions that tests can read: its only number is the length of the text."""

    length, dim = 2, 3

    def __call__(self, captions):
        return (
            torch.tensor([len(text) for text in captions]).float()[:, None, None].expand(-1, 2, 3)
        )


@pytest.fixture
def latents(home, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    line = "scale prepare --captions coco.json --images pictures --out L --vae tiny --size 16"
    assert cli.main(line.split()) == 0
    told = capsys.readouterr().out
    assert "3 images with 4 captions at 16 pixels" in told
    assert "left out: 1 with captions but not in" in told
    return Latents("L")


def test_captions_lie_beside_the_latents_and_a_batch_shows_one_of_each_image(latents):
    assert latents.condition == "captions"
    assert latents.captions == [("a dog on a mat", "a brown dog"), ("a cat",), ("two cats",)]
    with pytest.raises(ConfigError, match="no text encoder"):
        next(latents.batches(size=2, shard=1))
    latents.text = Letters()
    assert latents.text_shape == (2, 3)
    rows, seen = torch.tensor([0, 2]), set()
    for step in range(20):
        y = latents.conditions(rows, 0, step, 0)
        assert y.shape == (2, 2, 3)
        assert y[1].unique().item() == len("two cats")
        seen.add(y[0, 0, 0].item())
    assert seen == {len("a dog on a mat"), len("a brown dog")}
    whole = next(latents.batches(size=2, shard=1, start=3))[1]
    parts = [next(latents.batches(size=2, shard=1, start=3, rank=r, world=2))[1] for r in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))


def test_all_that_is_left_out_is_named_in_a_file_beside_the_latents(home, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    gone = [{"id": n, "file_name": f"{n}.png"} for n in range(20, 25)]
    said = [{"image_id": n, "caption": "a cow"} for n in range(20, 25)]
    more = {"images": COCO["images"] + gone, "annotations": COCO["annotations"] + said}
    (home / "more.json").write_text(json.dumps(more), encoding="utf-8")
    line = "scale prepare --captions more.json --images pictures --out L --vae tiny --size 16"
    files = []
    for _ in range(2):
        assert cli.main(line.split()) == 0
        told = capsys.readouterr().out
        assert "left out: 6 with captions but not in" in told
        assert "(20.png, 21.png, 22.png, ...)" in told
        assert "All of them are named in L/left_out.txt" in told
        files.append({path.name: path.read_bytes() for path in (home / "L").iterdir()})
    assert files[0] == files[1]
    text = (home / "L" / "left_out.txt").read_text("utf-8")
    head, *names = text.split("\n\n")[0].splitlines()
    assert head.startswith("6 with captions but not in")
    assert names == ["20.png", "21.png", "22.png", "23.png", "24.png", "5.png"]
    assert text.endswith("\n1 captions of no listed image:\na fish\n")
    Latents("L").verify()
    whole = {"images": COCO["images"][:3], "annotations": COCO["annotations"][:4]}
    for name in ("3", "4", "other"):
        (home / "pictures" / f"{name}.png").unlink()
    (home / "more.json").write_text(json.dumps(whole), encoding="utf-8")
    assert cli.main(line.split()) == 0  # the same set, and nothing else
    assert "left out" not in capsys.readouterr().out
    assert not (home / "L" / "left_out.txt").exists()


def test_other_captions_of_the_same_images_are_other_latents(home, latents, capsys):
    changed = json.dumps(COCO).replace("a cat", "a hat")
    (home / "other.json").write_text(changed, encoding="utf-8")
    line = "scale prepare --captions other.json --images pictures --out L --vae tiny --size 16"
    assert cli.main(line.split()) == 3
    assert "L holds other latents" in capsys.readouterr().err


def set_of(folder):
    """The bytes of latents, without the list of what the last command left out."""
    files = [path for path in folder.iterdir() if path.name != "left_out.txt"]
    return {path.name: path.read_bytes() for path in files}


def test_an_image_that_was_left_out_may_be_removed_from_the_same_set(home, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    bad = home / "pictures" / "1.png"
    bad.write_bytes(b"")
    line = "scale prepare --captions coco.json --images pictures --out L --vae tiny --size 16"
    assert cli.main(line.split()) == 0
    assert "left out 1.png: pictures/1.png is empty (0 bytes)" in capsys.readouterr().out
    before = set_of(home / "L")
    bad.unlink()
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().out.endswith("left out 1.png: it is not there any more\n")
    assert set_of(home / "L") == before
    assert Latents("L").captions == [("a dog on a mat", "a brown dog"), ("two cats",)]


def test_changed_captions_are_found_by_their_hash(home, latents):
    path = home / "L" / "captions.jsonl"
    path.write_text(path.read_text("utf-8").replace("cat", "hat"), encoding="utf-8")
    with pytest.raises(DataError, match=r"captions\.jsonl is damaged"):
        _ = latents.captions
