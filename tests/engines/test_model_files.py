import json
import os
import pickle
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memaudit.engines import model_files
from memaudit.engines.model_files import (
    check_folder,
    check_gguf,
    files_digest,
)
from memaudit.errors import ModelError

GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
INDEX = "model.safetensors.index.json"


def digest_of(source):
    """The digest of a folder, code in it included, or of a GGUF file."""
    if source.is_dir():
        return check_folder(source, trust_remote_code=True).digest
    return check_gguf(source).digest


def safetensors(n_bytes=16, n_tensors=2, prefix="w"):
    """The bytes of a weights file with tensors of the same size."""
    header = {
        f"{prefix}{i}": {
            "dtype": "U8",
            "shape": [n_bytes],
            "data_offsets": [i * n_bytes, (i + 1) * n_bytes],
        }
        for i in range(n_tensors)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(n_bytes * n_tensors)


def with_header(header, data=b""):
    """The bytes of a weights file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def save_model(folder):
    """Write the smallest folder that passes."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {"model_type": "gpt_neox"})
    _write_json(folder / "tokenizer.json", {"model": {"vocab": {"auto_map": 0}}})
    _write_json(folder / "tokenizer_config.json", {})
    (folder / "model.safetensors").write_bytes(safetensors())
    return folder


def write_index(folder, names):
    """Replace the one weights file by an index of several."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    _write_json(folder / INDEX, {"weight_map": {f"w{i}": name for i, name in enumerate(names)}})


@pytest.fixture
def folder(tmp_path):
    """A model that passes, for a test to break."""
    return save_model(tmp_path / "model")


class TouchWhenLoaded:
    """Pickles to something that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mknod, (str(self.path),))


def test_a_plain_model_folder_is_accepted(folder):
    """The refusals below must come from what is planted there and nothing else."""
    check_folder(folder)
    files = check_folder(folder)
    assert files.gguf_file is None
    assert [path.name for path in files.used] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_what_transformers_itself_saves_is_accepted(tiny_teacher):
    """Hand-written fixtures prove nothing about real files."""
    names = {path.name for path in check_folder(tiny_teacher).used}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


def test_a_sharded_model_is_accepted_with_all_its_shards(folder):
    """Every model above 5 GB comes in shards."""
    write_index(folder, ["a.safetensors", "b.safetensors", "a.safetensors"])
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(safetensors(prefix=name[0]))
    used = {path.name for path in check_folder(folder).used}
    assert {"a.safetensors", "b.safetensors", INDEX} <= used


def test_a_weight_that_is_there_twice_is_refused(folder):
    """Which of the two is loaded depends on the order of files."""
    write_index(folder, ["a.safetensors", "b.safetensors"])
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes(safetensors())
    with pytest.raises(ModelError, match=r"w0 is also in a\.safetensors"):
        check_folder(folder)


def test_a_merged_model_may_have_its_adapters_config_left(folder):
    """PEFT leaves it behind; with an adapter's weights beside it nobody knows what is meant."""
    _write_json(folder / "adapter_config.json", {"base_model_name_or_path": "owner/base"})
    assert "adapter_config.json" not in {path.name for path in check_folder(folder).used}
    (folder / "adapter_model.safetensors").write_bytes(safetensors())
    with pytest.raises(ModelError, match="an adapter, whose base model is elsewhere"):
        check_folder(folder)


def _no_config(folder):
    (folder / "config.json").unlink()


def _config(content):
    return lambda folder: _write_json(folder / "config.json", content)


def _raw(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _tokenizer_config(content):
    return lambda folder: _write_json(folder / "tokenizer_config.json", content)


def _index(*names):
    return lambda folder: write_index(folder, names)


def _huge_config(folder):
    os.truncate(folder / "config.json", 16 * 2**20 + 1)


def _no_weights(folder):
    (folder / "model.safetensors").unlink()


def _adapter(folder):
    (folder / "config.json").unlink()
    _write_json(folder / "adapter_config.json", {"base_model_name_or_path": "owner/base"})


def _custom_generate(folder):
    (folder / "custom_generate").mkdir()


def _link(name, target):
    def plant(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return plant


def _pipe(name):
    def plant(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return plant


def _truncated(folder):
    os.truncate(folder / "model.safetensors", len(safetensors()) - 1)


def _weights(content):
    return _raw("model.safetensors", content)


def _huge_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(path, 100_000_100)


def _tensor(*offsets):
    return {"dtype": "U8", "shape": [1], "data_offsets": list(offsets)}


REFUSALS = {
    "no config": (_no_config, "no config.json"),
    "config is a list": (_config([]), "not a JSON object"),
    "config is not JSON": (_raw("config.json", b"{"), "not valid JSON"),
    "config is not UTF-8": (_raw("config.json", b'{"a": "\xff"}'), "not valid JSON"),
    "config is nested without end": (_raw("config.json", b"[" * 200_000), "not valid JSON"),
    "config holds an endless number": (_raw("config.json", b"9" * 5_000), "not valid JSON"),
    "config is huge": (_huge_config, "at most 16777216 bytes, got 16777217"),
    "no weights": (_no_weights, "neither model.safetensors nor"),
    "adapter": (_adapter, "an adapter"),
    "auto_map": (_config({"auto_map": {"AutoModel": "m.M"}}), "auto_map"),
    "auto_map of the tokenizer": (_tokenizer_config({"auto_map": {}}), "auto_map"),
    "auto_map deep down": (_config({"text_config": [{"auto_map": {}}]}), "auto_map"),
    "Python file": (_raw("modeling_x.py", b""), "its own code"),
    "custom_generate": (_custom_generate, "its own code"),
    "internal attention": (_config({"_attn_implementation_internal": "x"}), "not allowed"),
    "internal experts": (_config({"_experts_implementation_internal": "x"}), "not allowed"),
    "weights elsewhere": (_config({"transformers_weights": "x"}), "not allowed"),
    "attention from the hub": (_config({"attn_implementation": "a/b"}), "code on the hub"),
    "attention, underscore": (_config({"_attn_implementation": "a/b"}), "code on the hub"),
    "attention of a part": (_config({"attn_implementation": {"text": "a/b"}}), "code on the hub"),
    "experts from the hub": (_config({"experts_implementation": "a/b"}), "code on the hub"),
    "experts, underscore": (_config({"_experts_implementation": "a/b"}), "code on the hub"),
    "layers without end": (_config({"num_layers": 10**12}), "num_layers is 1,000,000,000,000"),
    "layers repeated without end": (
        _config({"attention_types": [[["global", "local"], 10**12]]}),
        "attention_types stands for more than 4,096 layers",
    ),
    "no layer, repeated without end": (
        _config({"text_config": {"attention_types": [[[], -9], [[], 10**4000]]}}),
        "attention_types stands for more than 4,096 layers",
    ),
    "labels without end": (_config({"num_labels": 10**12}), "num_labels is 1,000,000,000,000"),
    "dense layers without end": (_config({"first_k_dense_replace": 4097}), "4,097, more than"),
    "index with a folder": (_index("sub/a.safetensors"), "in the same folder"),
    "index to the parent": (_index(".."), "in the same folder"),
    "index absolute": (_index("/etc/passwd"), "in the same folder"),
    "index with a backslash": (_index("sub\\a.safetensors"), "in the same folder"),
    "index of numbers": (_index(3), "in the same folder"),
    "index of a missing file": (_index("a.safetensors"), "1 of 1 files are missing"),
    "index of a name too long": (_index("a" * 5_000 + ".safetensors"), "files are missing"),
    "index with a NUL": (_index("\0.safetensors"), "files are missing"),
    "index of pickles": (_index("a.bin"), "other files than safetensors"),
    "index without a map": (_raw(INDEX, b"{}"), "no weight_map"),
    "index that is a list": (_raw(INDEX, b"[]"), "no weight_map"),
    "other index": (_raw("x.index.json", b'{"weight_map": {"a": "../a"}}'), "in the same folder"),
    "link to a file outside": (_link("vocab.json", "/etc/passwd"), "a link out of"),
    "link to a folder outside": (_link("sub", "/etc"), "a link out of"),
    "link to the weights of another": (_link("model.safetensors", "/etc/passwd"), "a link out of"),
    "link to nothing": (_link("vocab.json", "gone"), "a link to nothing"),
    "link to itself": (_link("vocab.json", "vocab.json"), "a link to nothing"),
    "weights are a pipe": (_pipe("model.safetensors"), "not a regular file"),
    "other weights are a pipe": (_pipe("extra.safetensors"), "not a regular file"),
    "tokenizer is a pipe": (_pipe("tokenizer.json"), "not a regular file"),
    "weights are empty": (_weights(b""), "0 bytes"),
    "weights of seven bytes": (_weights(b"\x02" + bytes(6)), "7 bytes"),
    "weights are cut off": (_truncated, f"got {len(safetensors()) - 1}"),
    "weights have a tail": (_weights(safetensors() + b"x"), f"got {len(safetensors()) + 1}"),
    "header too long": (_weights(struct.pack("<Q", 2**64 - 1) + b"{}"), "a header of 18446744073"),
    "header above the limit": (_huge_header, "a header of 100000001"),
    "header beyond the file": (_weights(struct.pack("<Q", 3) + b"{}"), "10 bytes"),
    "header not JSON": (_weights(with_header(b"{]")), "not valid JSON"),
    "header not UTF-8": (_weights(with_header(b'{"\xff": 1}')), "not valid JSON"),
    "header nested": (_weights(with_header(b"[" * 200_000)), "not valid JSON"),
    "header a list": (_weights(with_header([])), "not a JSON object"),
    "header without tensors": (_weights(with_header({"__metadata__": {}})), "holds no weights"),
    "tensor a number": (_weights(with_header({"w": 1})), "where each weight is"),
    "one offset": (_weights(with_header({"w": _tensor(0)})), "where each weight is"),
    "offsets are text": (_weights(with_header({"w": _tensor("0", "1")})), "where each weight is"),
    "offset endless": (_weights(with_header({"w": _tensor(0, 10**4000)})), "where each weight is"),
    "offset negative": (_weights(with_header({"w": _tensor(-1, 0)})), "from byte 0"),
    "offsets reversed": (_weights(with_header({"w": _tensor(0, -1)}, b"x")), "from byte 0"),
    "gap": (_weights(with_header({"w": _tensor(1, 2)}, b"xx")), "from byte 0"),
    "overlap": (
        _weights(with_header({"v": _tensor(0, 2), "w": _tensor(1, 3)}, b"xxx")),
        "from byte 2",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_folder_with_one_thing_wrong_is_refused(folder, case):
    """Each of these can run code, leave the folder, hang or crash the libraries that load it."""
    plant, expected = REFUSALS[case]
    plant(folder)
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "types", [[[["global", "local"], 12]], [[["local"], -1], 3, ["global"]], 7]
)
def test_repeated_layers_that_can_be_built_are_accepted(folder, types):
    """GPT-Neo's own; and of what is none of its lists transformers says itself what is wrong."""
    _config({"attention_types": types})(folder)

    assert check_folder(folder).used


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".joblib"])
def test_weights_only_as_pickle_are_refused_and_never_loaded(folder, tmp_path, suffix):
    """Unpickling runs whatever the file says."""
    sentinel = tmp_path / "touched"
    (folder / "model.safetensors").unlink()
    (folder / f"weights{suffix}").write_bytes(pickle.dumps(TouchWhenLoaded(sentinel)))
    with pytest.raises(ModelError) as caught:
        check_folder(folder, trust_remote_code=True)
    assert f"weights{suffix}" in caught.value.message
    assert "safetensors and GGUF" in caught.value.message
    assert "convert" in caught.value.hint
    assert not sentinel.exists()


def test_a_pickle_beside_safetensors_is_left_alone(folder, tmp_path):
    """Many repositories hold both, and an index of the pickles without them."""
    sentinel = tmp_path / "touched"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(TouchWhenLoaded(sentinel)))
    _write_json(folder / "pytorch_model.bin.index.json", {"weight_map": {"w": "gone.bin"}})
    check_folder(folder)
    assert digest_of(folder)
    assert not sentinel.exists()


def test_the_planted_pickle_would_have_touched_its_sentinel(tmp_path):
    """Otherwise the tests with it show nothing."""
    pickle.loads(pickle.dumps(TouchWhenLoaded(tmp_path / "touched")))
    assert (tmp_path / "touched").exists()


@pytest.mark.parametrize("case", ["auto_map", "auto_map of the tokenizer", "Python file"])
def test_trusted_code_is_allowed(folder, case):
    """The user has read it, and said so."""
    REFUSALS[case][0](folder)
    check_folder(folder, trust_remote_code=True)


CODE_CASES = ("auto_map", "Python file", "custom_generate")


@pytest.mark.parametrize("case", [name for name in REFUSALS if not name.startswith(CODE_CASES)])
def test_trusting_code_skips_no_other_check(folder, case):
    """Trust in a model's code is no trust in links, pickles or broken files."""
    plant, expected = REFUSALS[case]
    plant(folder)
    with pytest.raises(ModelError) as caught:
        check_folder(folder, trust_remote_code=True)
    assert expected in caught.value.message


def test_trusted_code_may_not_come_from_another_repository(folder):
    """Its revision would be whatever that repository holds on the day."""
    _write_json(folder / "config.json", {"auto_map": {"AutoModel": "owner/name--m.M"}})
    with pytest.raises(ModelError, match="another repository"):
        check_folder(folder, trust_remote_code=True)


def test_attention_kernels_of_transformers_are_accepted(folder):
    """Saved configs name the one that was used."""
    _write_json(folder / "config.json", {"_attn_implementation": "sdpa"})
    check_folder(folder)


@pytest.mark.parametrize("name", ["gone", "config.json"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    """A mistyped path is the commonest mistake of all."""
    (tmp_path / "config.json").touch()
    with pytest.raises(ModelError, match="no such folder"):
        check_folder(tmp_path / name)


def save_in_cache(cache):
    """Lay a model out as the cache of the hub does, and return its snapshot."""
    blobs = cache / "models--owner--name" / "blobs"
    snapshot = cache / "models--owner--name" / "snapshots" / ("0" * 40)
    save_model(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    return snapshot


def test_links_of_the_hub_cache_are_accepted(tmp_path):
    """Every downloaded model consists of them."""
    snapshot = save_in_cache(tmp_path)
    check_folder(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    assert digest_of(tmp_path / "link") == digest_of(snapshot)
    assert digest_of(snapshot) == digest_of(save_model(tmp_path / "copy"))


@pytest.mark.parametrize(
    "target",
    ["../../refs/main", "../../../models--other/blobs/x", "../../blobs/sub/x", "../other/x"],
)
def test_links_from_the_hub_cache_to_elsewhere_are_refused(tmp_path, target):
    """Being in a cache is no licence to read another model, let alone another file."""
    snapshot = save_in_cache(tmp_path)
    (snapshot / target).parent.mkdir(parents=True, exist_ok=True)
    (snapshot / target).write_text("{}", encoding="utf-8")
    (snapshot / "vocab.json").symlink_to(target)
    with pytest.raises(ModelError, match="a link out of"):
        check_folder(snapshot)


def test_a_link_within_the_folder_is_accepted(folder):
    """It leads nowhere else."""
    (folder / "vocab.json").symlink_to("tokenizer.json")
    check_folder(folder)


def mutate(content, rng):
    """Change, cut out or insert a few bytes, most often in the header."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(changed), rng.choice([8, len(content)])) or 1)
        kind = rng.randrange(3)
        if kind == 0:
            changed[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            del changed[at : at + rng.randint(1, 9)]
        else:
            changed[at:at] = rng.choice([b"{", b'"', b"9", b"-", b"[", b"\x00", b"null", b"1e9"])
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_a_mutated_weights_file_passes_or_is_refused_and_nothing_else(folder, seed):
    """A header is the one part of the weights that is parsed."""
    rng = random.Random(seed)
    n_refused = 0
    for _ in range(100):
        (folder / "model.safetensors").write_bytes(mutate(safetensors(), rng))
        try:
            check_folder(folder)
        except ModelError:
            n_refused += 1
    assert 60 < n_refused < 100


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", INDEX])
def test_a_mutated_json_file_passes_or_is_refused_and_nothing_else(folder, name):
    """Anyone can edit these by hand."""
    write_index(folder, ["a.safetensors"])
    (folder / "a.safetensors").write_bytes(safetensors())
    _write_json(folder / "tokenizer_config.json", {"a": [1.5, None, {"b": "c"}], "d": "e"})
    content = (folder / name).read_bytes()
    rng = random.Random(0)
    n_refused = 0
    for _ in range(100):
        (folder / name).write_bytes(mutate(content, rng))
        try:
            check_folder(folder)
        except ModelError:
            n_refused += 1
    assert n_refused > 30


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(
    tensors=st.dictionaries(st.text(), json_values | st.builds(_tensor, json_values, json_values))
)
def test_any_json_as_a_header_passes_or_is_refused(tmp_path_factory, tensors):
    """What parses is not yet what was meant."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(with_header(tensors, bytes(4)))
    try:
        model_files._check_safetensors(path)
    except ModelError:
        return
    assert tensors


def test_messages_hold_no_control_characters(folder):
    """A file name is the attacker's text on the user's terminal."""
    write_index(folder, ["\x1b]0;owned\x07.safetensors"])
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert "\\u001b" in caught.value.message
    assert caught.value.message.isprintable()
    (folder / "\x1b[2J.py").touch()
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_digest_changes_with_one_byte_of_a_used_file(folder, name):
    """A run is resumed only with the model that it was begun with."""
    before = digest_of(folder)
    content = bytearray((folder / name).read_bytes())
    # Spaces at the end of JSON, and the last weight, are free to change.
    content = content[:-1] + b"\x01" if name == "model.safetensors" else content + b" "
    (folder / name).write_bytes(content)
    assert digest_of(folder) != before


def test_the_digest_ignores_unrelated_files_and_where_the_folder_is(folder, tmp_path):
    """A README or an optimizer's state changes no score."""
    before = digest_of(folder)
    for name in ("README.md", "optimizer.pt", "extra.safetensors", ".gitattributes"):
        (folder / name).write_bytes(b"x")
    assert digest_of(folder) == before == check_folder(folder).digest
    folder.rename(tmp_path / "moved")
    assert digest_of(tmp_path / "moved") == before


def test_the_digest_depends_on_names_and_not_on_the_order(tmp_path):
    """Two files that swap their contents are another model."""
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_text(path.name, encoding="utf-8")
    before = files_digest(paths)
    assert len(before) == 64
    assert files_digest(reversed(paths)) == before
    paths[0].write_text("b", encoding="utf-8")
    paths[1].write_text("a", encoding="utf-8")
    swapped = files_digest(paths)
    assert swapped != before
    assert files_digest([paths[0], paths[1].rename(tmp_path / "c")]) != swapped


def test_code_is_part_of_the_digest(folder):
    """Trusted code that changes is another model."""
    (folder / "modeling_x.py").write_bytes(b"a = 1")
    before = digest_of(folder)
    (folder / "modeling_x.py").write_bytes(b"a = 2")
    assert digest_of(folder) != before


def test_a_gguf_file_is_found_by_its_name_or_as_the_only_one_of_a_folder(tmp_path):
    """People name either."""
    path = tmp_path / "m.gguf"
    path.write_bytes(GGUF)
    assert check_folder(tmp_path).gguf_file == check_gguf(path).gguf_file == "m.gguf"
    assert digest_of(tmp_path) == digest_of(path)
    before = digest_of(path)
    path.write_bytes(GGUF + b"x")
    assert digest_of(path) != before


def test_a_gguf_file_beside_another_model_is_not_meant(folder):
    """Who means it names the file itself."""
    (folder / "m.gguf").write_bytes(GGUF)
    assert check_folder(folder).gguf_file is None


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(struct.pack("<II", 4, 100_000), id="number"),
        pytest.param(struct.pack("<IQ", 10, 100_000), id="long number"),
        pytest.param(struct.pack("<IIQI", 9, 4, 1, 100_000), id="list of one"),
        pytest.param(struct.pack("<IIQIQI", 9, 9, 1, 4, 1, 100_000), id="list of a list of one"),
    ],
)
def test_a_gguf_file_of_more_layers_than_can_be_built_is_refused(tmp_path, value):
    """The library would build them for minutes before it looks for a weight."""
    text = struct.pack("<IQ", 8, 2) + b"ab"
    pairs = {
        b"general.name": text,
        b"a.texts": struct.pack("<IIQ", 9, 8, 2) + text[4:] * 2,
        b"a.lists": struct.pack("<IIQIQII", 9, 9, 1, 5, 2, 1, 2),
        b"a.numbers": struct.pack("<IIQ", 9, 6, 99) + bytes(4 * 99),
        b"llama.block_count": value,
    }
    content = b"".join(struct.pack("<Q", len(key)) + key + pairs[key] for key in pairs)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + content)

    with pytest.raises(ModelError, match=r"llama\.block_count is 100,000, more than 4,096"):
        check_gguf(path)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 32)))
    assert check_gguf(path).gguf_file == "m.gguf"


@pytest.mark.parametrize(
    "value", [struct.pack("<IQ", 8, 2**63), struct.pack("<IIQ", 9, 10, 2**63)], ids=["text", "list"]
)
def test_a_gguf_header_with_a_length_that_no_file_has_ends_there(tmp_path, value):
    """Whoever reads the model says what is wrong; looking at it must not end in a traceback."""
    path = tmp_path / "m.gguf"
    pair = struct.pack("<Q", 2) + b"ab" + value
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)

    assert check_gguf(path).gguf_file == "m.gguf"


def test_several_gguf_files_in_a_folder_are_a_question(tmp_path):
    """Quantizations of one model give different scores, so none is picked silently."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(GGUF)
    with pytest.raises(ModelError, match=r"2 GGUF files: a\.gguf, b\.gguf") as caught:
        check_folder(tmp_path)
    assert "name one" in caught.value.hint


def test_a_config_beside_gguf_files_gets_the_hint_to_name_one(folder):
    """Repositories of quantizations look like this."""
    (folder / "model.safetensors").unlink()
    (folder / "m.gguf").write_bytes(GGUF)
    with pytest.raises(ModelError) as caught:
        check_folder(folder)
    assert "m.gguf" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + GGUF[4:], pickle.dumps([1] * 9)])
def test_a_gguf_file_without_its_magic_is_refused(tmp_path, content):
    """The name is no proof."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    for find in (check_gguf, digest_of):
        with pytest.raises(ModelError, match="not a GGUF file"):
            find(path)


@pytest.mark.parametrize("version", [0, 1, 4, 2**25])
def test_a_gguf_file_of_an_unknown_version_is_refused(tmp_path, version):
    """Version 1 is laid out otherwise; 2**25 is version 2 of the other byte order."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", version))
    with pytest.raises(ModelError, match=f"got {version}"):
        check_gguf(path)


def test_a_gguf_name_that_is_missing_or_a_pipe_is_refused(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "m.gguf")
    for name in ("m.gguf", "gone.gguf"):
        with pytest.raises(ModelError, match="no such file"):
            check_gguf(tmp_path / name)
