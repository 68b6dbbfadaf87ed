import copyreg
import functools
import gc
import operator
import os
import pickle
import pickletools
import struct
import subprocess
import time
import tracemalloc

import numpy as np
import pytest
from reference.spoiled_files import spoil_bytes

from twelve_in_one.data.formats import safe_pickle
from twelve_in_one.data.stored.records import DataError

VALUES = [
    None, True, False, 0, -1, 255, 2**31, -(2**70), 1.5, float("inf"), 1 + 2j, "", "é\n", b"",
    b"\xff\x00", [], (), {}, set(), {1, "a"}, frozenset({2}), [1, [2, (3, {"a": [4]})]],
    {(1, "x"): 2, None: 3}, list(range(300)), "x" * 300,
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype=np.int8).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), np.zeros((0, 4), np.float32),
    np.array(3), np.array([True, False]), np.array([1, 2], ">i2"), np.array(["a", "bcd"]),
    np.array([b"ab"]), np.array([1, [2, 3], {"a": np.ones(3)}], object),
    np.array({"features": np.ones((2, 3), np.float16)}), [np.ones(2)] * 2, (np.ones(2), "a"),
    {"a": (np.zeros(1), [np.zeros(2)])},
]  # fmt: skip


def _assert_same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        for one, other in zip(got.flat, expected.flat, strict=True):
            if expected.dtype.hasobject:
                _assert_same(one, other)
            else:
                assert one == other
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            _assert_same(one, other)
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            _assert_same(got[key], expected[key])
    else:
        assert got == expected


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_survive(protocol):
    for value in VALUES:
        data = pickle.dumps(value, protocol)
        _assert_same(safe_pickle.loads(data, "x"), value)
        _assert_same(safe_pickle.loads(pickletools.optimize(data), "x"), value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "kind", ["?", "i1", "<u2", ">i4", "i8", "f2", "f4", "f8", "c8", "U3", "S2"]
)
def test_numpy_scalars_become_python_numbers(kind, protocol):
    value = np.array([1]).astype(kind)[0]
    got = safe_pickle.loads(pickle.dumps(value, protocol), "x")
    assert got == value.item() and type(got) is type(value.item())


def test_old_numpy_names(shared_dir):
    value = np.arange(4, dtype=np.float32)
    data = pickle.dumps([value, value[0]], 2).replace(b"numpy._core", b"numpy.core")
    assert data.count(b"numpy.core.multiarray") == 2
    got = safe_pickle.loads(data, "x")
    np.testing.assert_array_equal(got[0], value)
    python2 = (  # as cPickle of Python 2 wrote np.array([258], '<i2')
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntS'b'\ntRp2\n"
        b"(I1\n(L1L\ntcnumpy\ndtype\np3\n(S'i2'\nI0\nI1\ntRp4\n"
        b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x02\\x01'\ntb."
    )
    assert safe_pickle.loads(python2, "x").tolist() == [258]
    folder = shared_dir / "fixtures/loaders"
    paths = [*folder.glob("*/*/*.pkl"), *folder.glob("*/*/*.p"), *folder.glob("*/*/*/*.p")]
    assert len(paths) > 10
    for path in paths:  # these hold built-in types only, so that pickle itself is no risk
        _assert_same(safe_pickle.load(path), pickle.loads(path.read_bytes()))


class _Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _text(value):
    return pickle.dumps(value, 0)[:-1]


def _hostile(canary):
    """(name, pickle, what the message must name) of files that would make `canary`."""
    shell = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    made = {
        "system": (_Call(os.system, shell), f"{os.system.__module__}.system"),
        "popen": (_Call(subprocess.Popen, ["touch", str(canary)]), ".Popen"),
        "eval": (_Call(eval, code), "builtins.eval"),
        "exec": (_Call(exec, code), "builtins.exec"),
        "open": (_Call(open, str(canary), "w"), "open"),
        "partial": (functools.partial(os.system, shell), "functools.partial"),
        "attrgetter": (operator.attrgetter("system"), "operator.attrgetter"),
        "methodcaller": (operator.methodcaller("system", shell), "operator.methodcaller"),
        "getattr": (_Call(getattr, _Call(__import__, "os"), "system"), "builtins.getattr"),
        "import": (_Call(__import__, "this"), "builtins.__import__"),
        "numpy.load": (_Call(np.load, "x.npy", None, True), "numpy.load"),
        "numpy.fromfile": (_Call(np.fromfile, "/etc/passwd"), "fromfile"),
        "memmap": (_Call(np.memmap, str(canary), "u1", "w+", 0, (9,)), "numpy.memmap"),
        "bytearray": (_Call(bytearray, 1 << 40), "builtins.bytearray"),
        "map": (_Call(map, os.system, [shell]), "map"),
        "type": (_Call(type, "X", (), {}), "builtins.type"),
        "hidden": ({"a": [1, (np.ones(2), _Call(os.system, shell))]}, "system"),
        "in array": (np.array([_Call(os.system, shell)], object), "system"),
        "in key": ({_Call(os.system, shell): 1}, "system"),
    }
    for name, (value, wanted) in made.items():
        for protocol in (0, 2, 4, 5):
            yield f"{name}, {protocol}", pickle.dumps(value, protocol), wanted
    quoted = _text(shell)
    nested_os = b"cos\nsystem\n"
    raw = {
        "INST": (b"(" + quoted + b"ios\nsystem\n.", "os.system"),
        "OBJ": (b"(" + nested_os + quoted + b"o.", "os.system"),
        "NEWOBJ": (b"\x80\x02cbuiltins\neval\n" + quoted + b"\x85\x81.", "builtins.eval"),
        "NEWOBJ_EX": (b"\x80\x04cio\nFileIO\n)}\x92.", "io.FileIO"),
        "NEWOBJ of an admitted name": (b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x81.", "NEWOBJ"),
        "STACK_GLOBAL": (b"\x80\x04" + _text("os") + _text("system") + b"\x93.", "os.system"),
        "dotted": (b"\x80\x04" + _text("numpy") + _text("f2py.os.system") + b"\x93.", "numpy.f2py"),
        "dotted admitted": (
            b"\x80\x04" + _text("_codecs") + _text("encode.__self__") + b"\x93.",
            "_codecs.encode.__self__",
        ),
        "EXT1": (b"\x80\x02\x82\x01.", "registered class 1"),
        "EXT4": (b"\x80\x02\x84\x01\x02\x03\x04.", "registered class"),
        "PERSID": (b"Pevil\n.", "persistent object 'evil'"),
        "BINPERSID": (_text("evil") + b"Q.", "persistent object"),
        "BUILD on a dict": (b"}}b.", "state of a dict"),
        "BUILD on a function": (b"c_codecs\nencode\n}b.", "state of a"),
        "BUILD on a type": (b"cbuiltins\nset\n}b.", "state of a"),
        "buffers": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "a bare function": (b"c_codecs\nencode\n.", "as a value"),
        "a bare dtype": (pickle.dumps(np.dtype("f4"), 2), "as a value"),
        "a composed dtype": (pickle.dumps(np.zeros(1, [("a", "f4")]), 2), "dtype"),
        "a date": (pickle.dumps(np.array(["2020"], "M8[Y]"), 2), "dtype"),
        "unprintable": (b"cos\n\x1b[2J\n.", r"os.\x1b[2J"),
    }
    for name, (data, wanted) in raw.items():
        yield name, data, wanted


def _npy_of_objects(shape, content):
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_nothing_is_executed(tmp_path):
    canary, names = tmp_path / "canary", set()
    for name, data, wanted in _hostile(canary):
        for file in ("evil.pkl", "evil.p", "evil.npy"):
            path = tmp_path / file
            path.write_bytes(_npy_of_objects("()", data) if file.endswith("npy") else data)
            read = safe_pickle.load_npy if file.endswith("npy") else safe_pickle.load
            with pytest.raises(DataError) as caught:
                read(path)
            message = str(caught.value)
            assert str(path) in message and wanted in message, (name, message)
        assert not canary.exists(), name
        names.add(name)
    assert len(names) > 90


def test_registered_classes_that_were_looked_up_before():
    """Pickle keeps them where its `find_class` no longer sees them."""
    copyreg.add_extension("functools", "partial", 77)
    data = b"\x80\x02\x82\x4d."
    try:
        assert pickle.loads(data) is functools.partial
        with pytest.raises(DataError, match="registered class 77"):
            safe_pickle.loads(data, "x")
    finally:
        copyreg.remove_extension("functools", "partial", 77)


def test_canary_works(tmp_path):
    """The payloads are real: pickle itself does run one of them."""
    canary = tmp_path / "canary"
    pickle.loads(dict((n, d) for n, d, _ in _hostile(canary))["system, 2"])
    assert canary.exists()


def _array_pickle(shape, dtype, content, fortran=False):
    """An array's pickle by hand, with a state that numpy would believe."""

    class Array:
        def __reduce__(self):
            state = (1, shape, np.dtype(dtype), fortran, content)
            return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state

    return pickle.dumps(Array(), 2)


def _laughs(open_empty, close):
    return b"(" + open_empty + b"q\x00" + b"".join(
        b"(" + b"h%c" % i * 2 + close + b"q%c" % (i + 1) for i in range(60)
    )  # fmt: skip


BOMBS = {
    "memo": b"]r\xff\xff\xff\x7f.",
    "memo in text": b"]p99999999999999999999\n.",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.",
    "BYTEARRAY8 of all": b"\x80\x05\x96" + b"\xff" * 8 + b".",
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 33) + b"x.",
    "LONG4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "LONG4 negative": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
    "FRAME": b"\x80\x04\x95" + b"\xff" * 8 + b"X.",
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n.",
    "ndarray called": b"cnumpy\nndarray\n((I1099511627776\nttR.",
    "huge shape": _array_pickle((1 << 39,), "f4", b"abcd"),
    "huge product": _array_pickle((1 << 32, 1 << 32), "f4", b""),
    "huge shape of nothing": _array_pickle((0, 1 << 62), "f4", b""),
    "no item size": _array_pickle((1 << 39,), "S0", b""),
    "negative shape": _array_pickle((-1,), "f4", b"abcd"),
    "short list of objects": _array_pickle((1000,), "O", [1]),
    "bytes as objects": _array_pickle((1,), "O", b"12345678"),
    "list as numbers": _array_pickle((2,), "f4", [1, 2]),
    "text shape": _array_pickle("ab", "f4", b"abcd"),
    "wild order": _array_pickle((1,), "f4", b"abcd", fortran=[1]),
    "never filled": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
    "100k lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples as key": b"})" + b"\x85" * 100_000 + b"Ns.",
    "tuples in a set": b"\x80\x04(K\x01" + b"\x85" * 30_000 + b"\x91.",
    "doubling key": b"})" + b"2\x86" * 100 + b"Ns.",
    "doubling tuples": b")" + b"2\x86" * 60 + b".",
    "doubling lists": _laughs(b"]", b"l") + b"l.",
    "doubling as shape": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    b"(I1\n)" + b"2\x86" * 60 + b"NNNtb.",
    "doubling as dtype": b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\n)" + b"2\x86" * 60 + b"NNNtb.",
    "list in itself": b"]q\x00h\x00a.",
    "dict in itself": b"}q\x00K\x01h\x00s.",
    "objects in themselves": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt"
    b"S'b'\ntRq\x00(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI63\ntb"
    b"I00\n(h\x00ltb.",
    "unhashable key": b"}]Ns.",
    "doubling key by memo": b"})q\x00"
    + b"".join(b"h%c" % i * 2 + b"\x86q%c" % (i + 1) for i in range(60))
    + b"Ns.",
    "frames in frames": b"\x80\x04" + (b"\x95" + struct.pack("<Q", 1 << 19)) * 60_000,
    "items of an array": pickle.dumps(np.ones(3), 5)[:-1] + b"NK\x01s.",
    "an array filled again": pickle.dumps(np.ones(3), 5)[:-1]
    + b"(K\x01M\xff\xff\x85cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R\x89]tb.",
    "a scalar of objects": pickle.dumps(np.float64(1), 2).replace(b"f8", b"O8"),
    "attributes of a function": b"c_codecs\nencode\nN}X\x04\x00\x00\x00callNs\x86b.",
    "a number called": b"K\x01)R.",
    "memo before the first": b"]p-1\n.",
    "never in the memo": b"h\x05.",
    "an opcode of no protocol": b"\x80\x05\xff.",
    "no stack": b"0.",
    "no mark": b"t.",
    "odd items": b"}(Nu.",
    "append to a number": b"K\x01K\x02a.",
    "empty": b"",
    "text": b"image_id,width\n1,2\n",
    "html": b"<!DOCTYPE html><html></html>",
    "zip": b"PK\x03\x04" + bytes(100),
    "no end": pickle.dumps(list(range(100)))[:-1],
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name, tmp_path):
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name])
    gc.collect()
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(DataError, match=r"bomb\.pkl: (damaged or no pickle|wants .* refused)"):
            safe_pickle.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20
    assert time.monotonic() - began < 10


def test_truncation_is_noticed_everywhere(tmp_path):
    data = pickle.dumps({"boxes": np.ones((2, 4), np.float32), "ids": [1, "a"]}, 4)
    for end in range(len(data)):
        with pytest.raises(DataError, match="x: damaged"):
            safe_pickle.loads(data[:end], "x")
    path = tmp_path / "a.npy"
    np.save(path, np.arange(5))
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(DataError, match=r"a\.npy: damaged or no \.npy file"):
            safe_pickle.load_npy(path)


def test_missing_files(tmp_path):
    for read in (safe_pickle.load, safe_pickle.load_npy):
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path / "a")
        with pytest.raises(DataError, match="no such file"):
            read(tmp_path)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_round_trip(tmp_path, version):
    for value in VALUES:
        if isinstance(value, np.ndarray):
            with open(tmp_path / "a.npy", "wb") as stream:
                np.lib.format.write_array(stream, value, version)
            _assert_same(safe_pickle.load_npy(tmp_path / "a.npy"), value)


def test_npy_of_python_2(tmp_path):
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (2L,), }\n"
    content = struct.pack("<H", len(header)) + header + struct.pack("<qq", 3, 4)
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + content)
    assert safe_pickle.load_npy(tmp_path / "a.npy").tolist() == [3, 4]


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627775,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627775,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[D]', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,), }",
        "(" * 5000,
    ],
)
def test_npy_headers_are_not_believed(tmp_path, header):
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header.encode() + bytes(8)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy: (damaged|holds)"):
        safe_pickle.load_npy(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\x00" + b"\xff" * 4 + bytes(100))
    with pytest.raises(DataError, match="header of 4294967295 bytes in a file of 112"):
        safe_pickle.load_npy(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(_npy_of_objects("(3,)", pickle.dumps(np.array([1], object))))
    with pytest.raises(DataError, match="the pickle disagrees"):
        safe_pickle.load_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_mutated_pickles_end_in_a_value_or_an_error(protocol):
    value = {
        "boxes": np.ones((2, 4), np.float32), "ids": [b"1", "é"] * 3, "n": 10**20, "f": 0.5,
        "o": np.array([[1], {"a"}], object), "s": np.float32(2), "t": (1, frozenset({2})),
    }  # fmt: skip
    data, outcomes = pickle.dumps(value, protocol), set()
    rng = np.random.default_rng(protocol)
    for _ in range(600):
        try:
            repr(safe_pickle.loads(spoil_bytes(data, rng), "x"))
            outcomes.add("value")
        except DataError as error:
            assert str(error).startswith("x: ")
            outcomes.add("error")
    assert outcomes == {"value", "error"}


@pytest.mark.parametrize("value", [np.arange(12.0).reshape(3, 4), np.array({"a": np.ones(3)})])
def test_mutated_npy_files_end_in_an_array_or_an_error(value, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, value)
    data, rng, errors = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        path.write_bytes(spoil_bytes(data, rng))
        try:
            repr(safe_pickle.load_npy(path))
        except DataError as error:
            assert "a.npy" in str(error)
            errors += 1
    assert 0 < errors < 400
