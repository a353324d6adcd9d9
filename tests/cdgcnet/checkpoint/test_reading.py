"""The reader of weight files: what it takes, what it refuses, and that it runs nothing."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from cdgcnet.checkpoint.reading import read_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


def saved(content, **options):
    """What torch.save writes, as bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def arrays(state=STATE):
    return {key: value.numpy() for key, value in state.items()}


def safetensors_bytes(state=STATE):
    from safetensors.torch import save

    return save(state)


GOOD = {
    "state dict": saved(STATE),
    "torch's format before 1.6": saved(STATE, _use_new_zipfile_serialization=False),
    "safetensors": safetensors_bytes(),
    "pickle of arrays": pickle.dumps(arrays(), protocol=2),
    "model": saved({"model": STATE, "iteration": 7}),
    "state_dict": saved({"state_dict": STATE}),
    "wrapped twice": saved({"model": {"state_dict": STATE, "meta": {}}}),
    "DataParallel": saved({f"module.{k}": v for k, v in STATE.items()}),
    "DataParallel, wrapped": saved({"model": {f"module.{k}": v for k, v in STATE.items()}}),
    "compiled and parallel": saved({f"module._orig_mod.{k}": v for k, v in STATE.items()}),
    "Lightning": saved({"state_dict": {f"model.{k}": v for k, v in STATE.items()}, "epoch": 3}),
    "Detectron2's model zoo": pickle.dumps({"model": arrays(), "__author__": "x"}, protocol=2),
}


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "weights", "weights.safetensors"])
@pytest.mark.parametrize("kind", GOOD)
def test_wrappers_and_prefixes_are_off_whatever_the_file_is_called(tmp_path, kind, name):
    path = tmp_path / name
    path.write_bytes(GOOD[kind])
    file = read_weights(path)
    assert file.state.keys() == STATE.keys()
    assert all(torch.equal(file.state[key], STATE[key]) for key in STATE)


def test_what_is_beside_the_weights_is_kept(tmp_path):
    (tmp_path / "a.pth").write_bytes(saved({"model": STATE, "iteration": 7, "mIoU": 40.5}))
    assert read_weights(tmp_path / "a.pth").extra == {"iteration": 7, "mIoU": 40.5}


class Payload:
    """Runs code when it is unpickled by a reader that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def damaged(content):
    """One bit of a tensor flipped: torch.load itself does not notice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = next(e for e in archive.infolist() if "/data/" in e.filename and e.file_size > 8)
    at = entry.header_offset + 30 + len(entry.filename) + 4
    at = content.index(STATE["a.weight"].numpy().tobytes(), at)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def compressed(content):
    """The same archive, deflated: a small file that may unpack to any size."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return target.getvalue()


def false_safetensors():
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * 4


NAN = torch.tensor([1.0, float("nan"), float("inf")])
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello\n", "a text file"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "a web page; the download failed"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "an image"),
    "archive": (b"\x1f\x8b" + b"\0" * 50, "a compressed archive"),
    "bytes": (bytes(range(256)), "no torch, safetensors or pickle file"),
    "truncated": (saved(STATE)[:-200], "not a file of tensors"),
    "truncated pickle": (pickle.dumps(arrays(), protocol=2)[:-20], "not a file of tensors"),
    "truncated, earlier format": (
        saved(STATE, _use_new_zipfile_serialization=False)[:-8],
        "not a file of tensors",
    ),
    "truncated safetensors": (safetensors_bytes()[:-4], "not a file of tensors"),
    "safetensors that lies": (false_safetensors(), "not a file of tensors"),
    "a flipped bit": (damaged(saved(STATE)), "damaged .wrong checksum"),
    "compressed": (compressed(saved(STATE)), "compressed zip"),
    "another zip": (zipfile.ZIP_STORED, "not a file of tensors"),
    "a list": (saved([1, 2]), "expected a state dict, found list"),
    "nothing": (saved({}), "the state dict is empty"),
    "text for a tensor": (saved({"a": "x"}), "a: expected a tensor, found str"),
    "numbered": (saved({1: torch.ones(1)}), "the key 1"),
    "texts": (pickle.dumps({"a": np.array(["x"])}, protocol=2), "it asks for an array of 'U1'"),
    "objects": (pickle.dumps({"a": np.array([None])}, protocol=2), "it asks for an array of 'O8'"),
    "NaN": (saved({**STATE, "b": NAN}), "b: 2 of 3 values are NaN or infinite"),
    "NaN in half": (saved({"b": NAN.half()}), "b: 2 of 3"),
    "NaN in arrays": (pickle.dumps({"b": NAN.numpy()}, protocol=2), "b: 2 of 3"),
    "complex": (saved({"a": torch.ones(2) * 1j}), "a: expected a plain tensor"),
    "sparse": (saved({"a": torch.eye(3).to_sparse()}), "not a file of tensors|a plain tensor"),
    "expanded": (saved({"a": torch.ones(1).expand(10**6, 10**6)}), "more values than are stored"),
    "meta": (saved({"a": torch.ones(2, device="meta")}), "not a file of tensors|no values"),
    "a module": (saved(nn.Linear(2, 2)), "it asks for torch.nn.modules.linear.Linear"),
    "Caffe2": (pickle.dumps({"blobs": arrays()}, protocol=2), "Caffe2"),
}


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
@pytest.mark.parametrize("kind", BAD)
def test_a_wrong_file_is_named_with_what_was_found(tmp_path, kind, name):
    content, reason = BAD[kind]
    path = tmp_path / name
    if kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as raised:
        read_weights(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="a folder"):
        read_weights(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"b\.pth: there is no such file"):
        read_weights(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "write",
    [
        lambda x: saved({"model": x}),
        lambda x: saved(x, _use_new_zipfile_serialization=False),
        lambda x: pickle.dumps(x, protocol=2),
        lambda x: pickle.dumps({"a": x}, protocol=4),
        lambda x: pickle.dumps({"a": [np.ones(2), x]}, protocol=2),
    ],
    ids=["zip", "earlier format", "pickle", "pickle 4", "in arrays"],
)
@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_no_code_is_run(tmp_path, write, name):
    (tmp_path / name).write_bytes(write(Payload(str(tmp_path / "ran"))))
    with pytest.raises(ValueError, match=rf"{name}: not a file of tensors: it asks for io.open"):
        read_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_codecs_other_than_numpys_are_refused(tmp_path):
    content = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R."
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="it asks for the codec zip"):
        read_weights(tmp_path / "a.pkl")


def test_arrays_of_every_pickle_protocol_and_byte_order(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    content = {"c": values, "fortran": values.T, "big": values.astype(">f4"), "one": values[:1, 0]}
    for protocol in range(2, 6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        state = read_weights(tmp_path / "a.pkl").state
        for name, array in content.items():
            np.testing.assert_array_equal(state[name].numpy(), array)


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def views(name):
    """A thousand arrays over the same megabyte."""
    data = bytes(1 << 20)
    return pickle.dumps(
        {f"a{i}": Call(name, data, np.dtype("f4"), (1 << 18,), "C") for i in range(1000)}
    )


def self_containing():
    content = {"a": 1}
    content["model"] = content
    return saved(content)


# 1 TiB, in files of a few bytes; the last one takes 1 GiB from a megabyte.
BOMBS = {
    "array": pickle.dumps({"a": Call(np.ndarray, (1 << 38,), np.dtype("f4"))}, protocol=2),
    "scalar": pickle.dumps(
        {"a": Call(np.float32(0).__reduce__()[0], np.dtype("V1000000000"))}, protocol=2
    ),
    "bytearray": saved({"a": Call(bytearray, 1 << 40)}),
    "bytearray, earlier format": saved(
        {"a": Call(bytearray, 1 << 40)}, _use_new_zipfile_serialization=False
    ),
    "bytearray in a pickle": pickle.dumps({"a": Call(bytearray, 1 << 40)}, protocol=2),
    "tensor": saved({"a": Call(torch.FloatTensor, 1 << 24)}),
    "views": views(pickle.loads(pickle.dumps(np.ones(1), protocol=5)).__reduce_ex__(5)[0]),
    "itself": self_containing(),
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "string": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"a.",
    "string, earlier format": saved(STATE, _use_new_zipfile_serialization=False)[:20]
    + b"\x80\x02X\xff\xff\xff\xffa.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_cannot_ask_for_much_memory_or_time(tmp_path, kind):
    (tmp_path / "a.pth").write_bytes(BOMBS[kind])
    reason = "not a file of tensors|than are stored|its arrays take|contains itself"
    with pytest.raises(ValueError, match=reason) as raised:
        read_weights(tmp_path / "a.pth")
    assert "MemoryError" not in str(raised.value)


# A dtype whose state forges objects: NumPy would follow addresses that come from the file.
FORGED = (
    b"\x80\x02}(cnumpy\ndtype\n(X\x02\x00\x00\x00V8K\x00K\x01tR(K\x03X\x01\x00\x00\x00|N}X\x01\x00\x00\x00a"
    b"(cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tRK\x00ts(X\x01\x00\x00\x00atK\x08K\x01K\x00tbK\x01u."
)
NUMPYS_FUNCTIONS = (
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
)


def test_dtypes_are_numbers_whatever_the_file_says_of_their_fields(tmp_path):
    (tmp_path / "a.pkl").write_bytes(FORGED)
    with pytest.raises(ValueError, match="it asks for an array of 'V8'"):
        read_weights(tmp_path / "a.pkl")


def test_arrays_lie_in_bytes_of_the_file_alone(tmp_path):
    # An array in the memory of another one would dangle as soon as that one is filled again.
    inner = pickle.dumps(np.ones(2), protocol=2)[2:-1]
    dtype = pickle.dumps(np.dtype("f4"), protocol=2)[2:-1]
    call = NUMPYS_FUNCTIONS[1] + b"(" + inner + dtype + b"K\x01\x85t" + b"R"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s.")
    with pytest.raises(ValueError, match="it asks for an array in a _Array"):
        read_weights(tmp_path / "a.pkl")


@pytest.mark.parametrize("function", NUMPYS_FUNCTIONS)
def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path, function):
    defaults = b"NX\x0c\x00\x00\x00__defaults__X\x01\x00\x00\x00F\x85"
    evil = b"\x80\x02}X\x01\x00\x00\x00a" + function + b"N}" + defaults[1:] + b"s\x86bs."
    (tmp_path / "evil.pkl").write_bytes(evil)
    with pytest.raises(ValueError, match=r"evil\.pkl: "):
        read_weights(tmp_path / "evil.pkl")
    test_arrays_of_every_pickle_protocol_and_byte_order(tmp_path)


def test_names_in_a_file_cannot_write_to_the_terminal(tmp_path):
    (tmp_path / "a.pth").write_bytes(saved({"\x1b[2J\n" + "x" * 9999: "text"}))
    with pytest.raises(ValueError, match=r"a\.pth: ") as raised:
        read_weights(tmp_path / "a.pth")
    assert str(raised.value).isprintable() and len(str(raised.value)) < 999
