"""VQA-RAD and SLAKE."""

import json
from collections import Counter

import pytest
from helpers.benchmark_files import draw_slake_images, save_drawn, write_vqa_rad

from biomedclip.processing import load_benchmark, read_image


def test_questions_are_split_by_their_phrase_type_and_stripped(tmp_path):
    write_vqa_rad(
        tmp_path,
        [
            {"phrase_type": "freeform"},
            {"phrase_type": "para"},
            {"phrase_type": "test_freeform", "answer": 4, "answer_type": "OPEN", "question": " How many? "},
            {"phrase_type": "test_para", "answer": "Yes ", "answer_type": "CLOSED ", "image_name": "synpic2.jpg"},
        ],
    )
    assert len(load_benchmark("vqa_rad", tmp_path, split="train")) == 2
    benchmark = load_benchmark("vqa_rad", tmp_path)
    first, second = benchmark.questions
    assert (first.question, first.answer, first.answer_type, first.name) == ("How many?", "4", "open", "2")
    assert (second.answer, second.answer_type, second.image_name) == ("Yes", "closed", "synpic2.jpg")
    assert read_image(second.image).size == (64, 64)
    assert benchmark.paper == {"accuracy": 0.727, "open_accuracy": 0.67, "closed_accuracy": 0.765, "f1": 0.7313}
    with pytest.raises(ValueError, match="no validation split"):
        load_benchmark("vqa_rad", tmp_path, split="validation")


def test_missing_images_are_counted_and_named(tmp_path):
    write_vqa_rad(tmp_path, [{"phrase_type": "test_para", "image_name": f"synpic{number}.jpg"} for number in range(3)])
    (tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match="1 of 3 images of .* are missing: synpic1.jpg. VQA-RAD comes from https"
    ):
        load_benchmark("vqa_rad", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        load_benchmark("vqa_rad", tmp_path, image_folder=tmp_path / "nowhere")
    (tmp_path / "VQA_RAD Dataset Public.json").unlink()
    with pytest.raises(FileNotFoundError, match="neither VQA_RAD Dataset Public.json nor testset.json"):
        load_benchmark("vqa_rad", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"image_name": "../../secret.png"}, "is outside the folder of images"),
        ({"image_name": "/etc/passwd"}, "is outside the folder of images"),
        ({"answer_type": "maybe"}, "question 0 is 'maybe', neither OPEN nor CLOSED"),
        ({"answer": None}, "question 0 has no answer"),
        ('[{"qid": 1', "not a JSON file, or a truncated one"),
        ('{"questions": []}', "not a list of questions"),
        ("[" * 100_000, "not a JSON file, or a truncated one"),
        ("[]", "no questions of this split"),
    ],
)
def test_invalid_questions_and_files_are_refused(tmp_path, content, message):
    write_vqa_rad(tmp_path, [{"phrase_type": "test_para"}])
    file = tmp_path / "VQA_RAD Dataset Public.json"
    (given,) = json.loads(file.read_text())
    file.write_text(content if isinstance(content, str) else json.dumps([given | content]))
    with pytest.raises(ValueError, match=message):
        load_benchmark("vqa_rad", tmp_path)


def test_slake_is_read_by_language(tmp_path):
    rows = [
        {
            "qid": number,
            "img_name": f"xmlab{number}/source.jpg",
            "question": "What organ?",
            "answer": "Liver",
            "answer_type": "OPEN",
            "q_lang": language,
        }
        for number, language in enumerate(["en", "en", "zh"])
    ]
    for split in ("train", "validate", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(
        FileNotFoundError, match="no folder of images \\(imgs\\). SLAKE comes from https://www.med-vqa.com"
    ):
        load_benchmark("slake", tmp_path)
    for number in range(3):
        save_drawn(tmp_path / "imgs" / f"xmlab{number}" / "source.jpg", number, 32)
    assert [asked.image_name for asked in load_benchmark("slake", tmp_path).questions] == [
        "xmlab0/source.jpg",
        "xmlab1/source.jpg",
    ]
    assert len(load_benchmark("slake", tmp_path, split="validation", language="zh")) == 1
    assert len(load_benchmark("slake", tmp_path, split="train", language="all")) == 3
    with pytest.raises(ValueError, match="Unknown language 'de'"):
        load_benchmark("slake", tmp_path, language="de")
    (tmp_path / "validate.json").unlink()
    with pytest.raises(FileNotFoundError, match="no validate.json"):
        load_benchmark("slake", tmp_path, split="validation")


def test_both_published_files_of_vqa_rad_are_read(shared_data):
    root = shared_data / "vqa_rad"
    images = root / "data" / "osfstorage" / "VQA_RAD Image Folder"
    published = [load_benchmark("vqa_rad", root, split=split) for split in ("train", "test")]
    assert [len(benchmark) for benchmark in published] == [1_797, 451]
    assert Counter(asked.answer_type for asked in published[1].questions) == {"closed": 272, "open": 179}
    assert all(isinstance(asked.answer, str) and asked.answer for asked in published[0].questions)
    assert len({asked.name for benchmark in published for asked in benchmark.questions}) == 2_248
    assert published[1].notes == ["The published split: 1,797 training questions and 451 test questions."]
    other = [
        load_benchmark("vqa_rad", root / "awenbocc_split", split=split, image_folder=images)
        for split in ("train", "test")
    ]
    assert [len(benchmark) for benchmark in other] == [3_064, 451]
    assert "3,064 training questions" in other[0].notes[0]


@pytest.mark.slow
def test_all_published_questions_of_slake_are_read(shared_data, tmp_path):
    folder = shared_data / "slake" / "Slake1.0"
    draw_slake_images(tmp_path, folder.glob("*.json"))
    sizes = {
        split: {
            language: len(load_benchmark("slake", folder, split=split, language=language, image_folder=tmp_path))
            for language in ("en", "zh", "all")
        }
        for split in ("train", "validation", "test")
    }
    assert sizes == {
        "train": {"en": 4_919, "zh": 4_916, "all": 9_835},
        "validation": {"en": 1_053, "zh": 1_046, "all": 2_099},
        "test": {"en": 1_061, "zh": 1_033, "all": 2_094},
    }
