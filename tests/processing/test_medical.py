"""DICOM and NIfTI against pydicom's own LUTs and nibabel's own orientation, on real files."""

import gzip
import io
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing import decode, medical, nifti, open_image
from mmedexpert_jax.processing.windows import PRESETS, View, chosen

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
warnings.filterwarnings("ignore")

FOLDERS = [Path(pydicom.__file__).parent / "data", *([Path(__import__("data_store").__file__).parent])]
DICOM = sorted({file for folder in FOLDERS for file in folder.rglob("*.dcm")})
VOLUMES = Path(nibabel.__file__).parent / "tests" / "data"


def by_pydicom(dataset, values: np.ndarray) -> np.ndarray:
    """uint8 of one grey frame whose window stands in its own header, by pydicom's functions alone."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    shown = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    probe = dataset.copy()
    if dataset.get("VOILUTSequence"):
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:  # what pydicom gives far below and far above the window
        probe.WindowCenter, probe.WindowWidth = 0, 2
        from pydicom.pixels import apply_windowing

        probe.VOILUTFunction = "LINEAR"
        low, high = apply_windowing(np.array([-1e9, 1e9]), probe)
    levels = np.round(np.clip((shown - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return 255 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels


@pytest.mark.parametrize("file", DICOM, ids=lambda file: file.name)
def test_every_real_dicom_is_read_as_pydicom_shows_it_or_refused_in_one_line(file):
    try:
        pictures = decode(file, slices=2)
    except DataError as error:
        assert str(file) in str(error) and "\n" not in str(error) and len(str(error)) < 400
        return
    dataset = pydicom.dcmread(file, force=True)
    count = int(dataset.get("NumberOfFrames") or 1)
    assert len(pictures) == min(2, count)
    windowed = dataset.get("WindowWidth") not in (None, "") or dataset.get("VOILUTSequence")
    for picture, place in zip(pictures, chosen(count, 2, "x"), strict=True):
        assert picture.mode == "RGB" and picture.size == (dataset.Columns, dataset.Rows) and not picture.info
        if windowed and dataset.get("PhotometricInterpretation", "").startswith("MONO"):
            values = pydicom.pixels.pixel_array(file, index=place if count > 1 else None)
            np.testing.assert_array_equal(np.asarray(picture)[..., 0], by_pydicom(dataset, values))


def test_most_of_the_real_files_are_read():
    read, refused = 0, []
    for file in DICOM:
        try:
            read += bool(decode(file, slices=1))
        except DataError as error:
            refused.append(str(error))
    print("\n".join(refused))
    assert read >= 100


def a_ct(**header) -> bytes:
    """A CT slice of stored values 0..4095 with rescale -1024, named after a patient."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    values = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    fields = {
        "PatientName": "Doe^Jane",
        "Modality": "CT",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": 48,
        "Columns": 64,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelData": values.tobytes(),
    }
    for key, value in (fields | header).items():
        setattr(dataset, key, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_pydicoms_window_of_that_centre_and_width(preset):
    centre, width = PRESETS[preset]
    shown = open_image(a_ct(), "scan", window=preset)
    header = open_image(a_ct(WindowCenter=centre, WindowWidth=width), "scan")
    assert np.array_equal(np.asarray(shown), np.asarray(header))
    dataset = pydicom.dcmread(io.BytesIO(a_ct(WindowCenter=centre, WindowWidth=width)))
    assert np.array_equal(np.asarray(shown)[..., 0], by_pydicom(dataset, dataset.pixel_array))


def test_monochrome1_is_inverted_and_three_windows_are_three_channels():
    straight = np.asarray(open_image(a_ct(), window=[40, 400]))
    inverted = np.asarray(open_image(a_ct(PhotometricInterpretation="MONOCHROME1"), window=(40, 400)))
    assert np.array_equal(inverted, 255 - straight)
    colours = np.asarray(open_image(a_ct(), window=["wide", "mediastinum", "brain"]))
    for channel, preset in enumerate(("wide", "mediastinum", "brain")):
        assert np.array_equal(colours[..., channel], np.asarray(open_image(a_ct(), window=preset))[..., 0])


def test_without_a_window_the_range_counts_without_padding():
    values = np.full((48, 64), 1000, np.uint16)
    values[0], values[1] = 0, 1100
    shown = np.asarray(open_image(a_ct(PixelData=values.tobytes(), PixelPaddingValue=0)))
    assert shown[5, 5, 0] == 0 and shown[1, 5, 0] == 255


@pytest.mark.parametrize(("value", "limit"), [(-2000, -1500), (-1500, -2000), (-2000, None)])
def test_without_a_window_the_range_counts_without_a_range_of_padding(value, limit):
    values = np.full((48, 64), 40, np.int16)
    values[0], values[1], values[2], values[3] = -2000, -1500, 0, 100
    fields = {"PixelPaddingValue": value, "PixelRepresentation": 1} | (
        {"PixelPaddingRangeLimit": limit} if limit else {}
    )
    shown = np.asarray(open_image(a_ct(PixelData=values.tobytes(), RescaleIntercept=0, **fields)))[:, 0, 0]
    if limit:
        assert shown[2] == 0 and shown[3] == 255 and shown[0] == shown[1] == 0 and 95 < shown[9] < 110
    else:
        assert shown[1] == 0 and shown[3] == 255 and shown[2] > 230  # the other is a value like any


LEVEL = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1]}


def test_a_window_up_to_one_is_exact_as_dicom_has_it():
    """LINEAR does not know such widths, and a volume that is scaled to 0..1 needs them."""
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3)
    data = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    shown = np.asarray(open_image(data, "scan", slices=[1], window=(0.5, 0.25)))[..., 0]
    dataset = pydicom.Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 8, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 0.5, 0.25, "LINEAR_EXACT"
    from pydicom.pixels import apply_voi_lut

    expected = apply_voi_lut(np.asarray(values[..., 1], np.float64), dataset)
    np.testing.assert_array_equal(shown, np.round(expected)[::-1, ::-1].T)


def test_what_a_scan_cannot_show_is_one_line():
    cases = {
        "Hounsfield": ({"Modality": "MR"}, {"window": "lung"}),
        "frames": ({"NumberOfFrames": 3}, {}),
        "without a picture": ({"PixelData": None, "Rows": 0}, {}),
        "0 x 64|64 x 0": ({"Rows": 0}, {}),
        "one slice": (LEVEL, {"plane": "sagittal"}),
        "no ImagePositionPatient": ({"NumberOfFrames": 3}, {"plane": "sagittal"}),
        "DICOM pictures of HSV": ({"PhotometricInterpretation": "HSV"}, {}),
        "cannot be decoded": ({"PixelData": b"ab"}, {}),
    }
    for words, (header, view) in cases.items():
        content = a_ct(**header)
        if header.get("PixelData", 1) is None:
            dataset = pydicom.dcmread(io.BytesIO(content))
            del dataset.PixelData
            buffer = io.BytesIO()
            dataset.save_as(buffer)
            content = buffer.getvalue()
        with pytest.raises(DataError, match=words) as caught:
            decode(content, name="scan 1", **view)
        assert str(caught.value).startswith("scan 1") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["example4d.nii.gz", "example_nifti2.nii.gz", "anatomical.nii", "functional.nii"])
@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_real_volumes_are_shown_in_nibabels_canonical_orientation(name, plane, axis):
    image = nibabel.load(VOLUMES / name)
    canonical = nibabel.as_closest_canonical(image)
    values = np.asarray(canonical.dataobj, np.float64)
    values = values[..., 0] if values.ndim == 4 else values
    low, high = image.header["cal_min"], image.header["cal_max"]
    if high <= low:
        low, high = np.percentile(values, (0.5, 99.5))
    place = values.shape[axis] // 2
    (picture,) = decode(VOLUMES / name, slices=[place], plane=plane)
    levels = np.round(np.clip((np.take(values, place, axis) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    expected = Image.fromarray(np.rot90(levels)[:, ::-1])  # the patient's right, or front, on the left
    wide, high = (size for i, size in enumerate(canonical.header.get_zooms()[:3]) if i != axis)
    if wide == high:
        assert np.array_equal(np.asarray(picture)[..., 0], np.asarray(expected))
    else:
        assert abs(picture.width * high * levels.shape[1] / (picture.height * wide * levels.shape[0]) - 1) < 10


def test_a_volume_knows_left_from_right_and_up_from_down():
    values = np.zeros((8, 10, 12), np.int16)
    values[6:, :, :], values[:, :, 10:] = 50, 100  # the patient's right side; the top
    for flip in (1, -1):
        affine = np.diag([flip * 1.0, 1, 1, 1])
        stored = values[::flip]
        content = nibabel.Nifti1Image(stored, affine).to_bytes()
        axial = np.asarray(open_image(content, window="range", slices=[3]))
        assert axial.shape == (10, 8, 3) and axial[5, 0, 0] > axial[5, 7, 0]
        coronal = np.asarray(open_image(gzip.compress(content), window=[50, 101], slices=[2], plane="coronal"))
        assert coronal.shape == (12, 8, 3) and coronal[0, 4, 0] == 255 and coronal[11, 4, 0] <= 1


@pytest.mark.parametrize("window", ["range", ("range", "full", (100, 201))])
def test_slices_of_a_volume_under_a_range_have_one_scale(window):
    """A value is the same grey in a dark slice and in a bright one."""
    values = np.full((6, 6, 3), -50, np.int16)
    values[2:4, 2:4] = [10, 100, 150]
    content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    pictures = decode(content, window=window, slices=(0, 1, 2))
    shown = [np.asarray(picture)[3, 3, 0] for picture in pictures]
    assert shown == [round(255 * (value + 50) / 200) for value in (10, 100, 150)]
    assert {np.asarray(picture)[0, 0, 0] for picture in pictures} == {0}
    if window == "range":
        held = nifti.read(content, "v", View.make(window))
        assert [held.window(place) for place in range(3)] == [(50.5, 201.0)] * 3


def test_slices_are_even_or_named():
    assert chosen(10, 5, "x") == (1, 3, 5, 7, 9)
    assert chosen(9, 1, "x") == (4,)
    assert chosen(3, 8, "x") == (0, 1, 2)
    assert chosen(10, (9, 0), "x") == (9, 0)
    with pytest.raises(DataError, match="x: no slice 10; it has 10, from 0 to 9"):
        chosen(10, (10,), "x")
    for wrong in ({"slices": 0}, {"slices": True}, {"slices": []}, {"slices": [-1]}, {"slices": "3"}, {"plane": "up"}):
        with pytest.raises(DataError, match=f"row 2, {next(iter(wrong))}"):
            View.make(**wrong, name="row 2")
    for window in ("lungs", [1], [0, 0], [0, float("nan")], [None, None], {"lung": 1}, 5, True, ["lung", "bone"]):
        with pytest.raises(DataError, match="row 2, window"):
            View.make(window=window, name="row 2")


def test_a_packed_volume_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(nifti, "MAX_BYTES", 1000)
    content = gzip.compress(nibabel.Nifti1Image(np.zeros((40, 40, 40), np.int16), np.eye(4)).to_bytes())
    with pytest.raises(DataError, match=r"unpacks to more than|has more than"):
        decode(content, slices=1)
    monkeypatch.undo()
    with pytest.raises(DataError, match="NIfTI file that can be read"):
        decode(content[:200], slices=1)


def test_a_volume_of_labels_or_under_a_stale_window_has_all_its_greys():
    labels = np.zeros((40, 40, 4), np.uint8)
    labels[:10], labels[10:20], labels[30:33, 30:33] = 1, 2, 14
    spots = np.zeros((40, 40, 4), np.float32)
    spots[20, 20, 1:], spots[5, 5, 1:] = 3, 1.5
    volume = np.arange(0, 6400, dtype=np.int16).reshape(40, 40, 4)
    stale = nibabel.Nifti1Image(volume, np.eye(4))
    expected = np.asarray(decode(stale.to_bytes(), slices=[2])[0]).tolist()
    stale.header["cal_max"] = 1
    assert np.asarray(decode(stale.to_bytes(), slices=[2])[0]).tolist() == expected
    for values, levels in ((labels, {0, 18, 36, 255}), (spots, {0, 128, 255})):
        content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
        assert set(np.unique(decode(content, slices=[2])[0])) == levels


@pytest.mark.parametrize("width", [500, 512])
def test_a_volume_whose_first_slice_is_empty_is_no_map_of_labels(width):
    volume = np.random.default_rng(0).integers(50, 400, (width, 512, 6)).astype(np.int16)
    volume[..., 0] = 0
    volume[10, 10, 3] = 30000
    (shown,) = decode(nibabel.Nifti1Image(volume, np.eye(4)).to_bytes(), slices=[3])
    assert 120 < np.asarray(shown).mean() < 200


# rows and columns of a slice in the patient, DICOM's left, posterior, superior
LAID = {
    "axial": [1, 0, 0, 0, 1, 0],
    "coronal": [1, 0, 0, 0, 0, -1],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [0.98, 0.2, 0.0, -0.2, 0.98, 0.0],
    "feet first": [-1, 0, 0, 0, 1, 0],
}


def a_series(volume: np.ndarray, axes, spacing=(0.8, 0.6), gap=2.5, **header) -> list[bytes]:
    """The files of a CT series of stored values [slice, row, column], the first slice at (-20, 10, 5) mm."""
    axes = np.reshape(axes, (2, 3)) / np.linalg.norm(np.reshape(axes, (2, 3)), axis=1)[:, None]
    files = []
    for number, values in enumerate(volume):
        position = np.array([-20.0, 10.0, 5.0]) + number * gap * np.cross(*axes)
        place = {
            "ImagePositionPatient": [f"{x:.6f}" for x in position],
            "ImageOrientationPatient": [f"{x:.9f}" for x in axes.ravel()],
            "PixelSpacing": list(spacing),
            "SeriesInstanceUID": "1.2.3.4",
            "InstanceNumber": len(volume) - number,  # the place counts, not the number
            "SOPInstanceUID": f"1.2.3.4.{number}",
        }
        rows, columns = values.shape
        pixels = {"Rows": rows, "Columns": columns, "PixelData": values.astype(np.uint16).tobytes()}
        files.append(a_ct(**{**place, **pixels, **header}))
    return files


def zipped(files: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("scan/LICENSE", "free")
        for number, file in enumerate(files):
            archive.writestr(f"scan/{(7 * number) % 97:03d}.dcm", file)
    return buffer.getvalue()


def as_nifti(volume: np.ndarray, axes, spacing=(0.8, 0.6), gap=2.5) -> bytes:
    """The same voxels in Hounsfield units, as a converter writes them: (column, row, slice) to right, anterior, up."""
    axes = np.reshape(axes, (2, 3)) / np.linalg.norm(np.reshape(axes, (2, 3)), axis=1)[:, None]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = axes[0] * spacing[1], axes[1] * spacing[0], np.cross(*axes) * gap
    affine[:3, 3] = (-20, 10, 5)
    image = nibabel.Nifti1Image(volume.transpose(2, 1, 0).astype(np.int16) - 1024, np.diag([-1, -1, 1, 1]) @ affine)
    return image.to_bytes()


@pytest.mark.parametrize("laid", LAID)
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_series_is_cut_as_the_same_volume_in_nifti(laid, plane, tmp_path):
    volume = np.random.default_rng(0).integers(0, 4096, (6, 12, 10))
    files = a_series(volume, LAID[laid])
    for number, file in enumerate(files):
        (tmp_path / f"{(5 * number) % 6}.dcm").write_bytes(file)
    for window in ([300, 2000], ["range", [300, 2000], "wide"]):
        view = {"slices": [0, 2, 5], "plane": plane, "window": window}
        expected = decode(as_nifti(volume, LAID[laid]), **view)
        for source in (zipped(files), tmp_path):
            found = decode(source, name="scan", **view)
            assert [np.asarray(one).tolist() for one in found] == [np.asarray(one).tolist() for one in expected]


def test_a_plane_has_the_pixels_of_the_slices_under_the_middle_ones_window():
    """Reformatted along its own plane, a series is what pydicom shows of each file under that one window."""
    volume = np.random.default_rng(1).integers(0, 4096, (5, 8, 8))
    files = a_series(volume, LAID["axial"], (1, 1), 1)
    windows = [(40 + 10 * number, 400) for number in range(5)]
    files = [again(file, WindowCenter=c, WindowWidth=w) for file, (c, w) in zip(files, windows, strict=True)]
    for place, picture in enumerate(decode(zipped(files), slices=5, plane="axial")):
        dataset = pydicom.dcmread(io.BytesIO(files[place]))
        dataset.WindowCenter, dataset.WindowWidth = windows[2]
        assert np.array_equal(np.asarray(picture)[..., 0], by_pydicom(dataset, dataset.pixel_array))
    # one range for all where there is no window: the darkest voxel of the volume is black, the brightest white
    files = a_series(
        np.arange(5 * 64).reshape(5, 8, 8), LAID["axial"], (1, 1), 1, PhotometricInterpretation="MONOCHROME1"
    )
    shown = np.stack([np.asarray(one)[..., 0] for one in decode(zipped(files), slices=5, plane="axial")])
    assert (shown[0, 0, 0], shown[4, 7, 7]) == (255, 0) and len(np.unique(shown)) == 256


def again(file: bytes, **header) -> bytes:
    return again_of(pydicom.dcmread(io.BytesIO(file)), **header)


def again_of(dataset, **header) -> bytes:
    for key, value in header.items():
        setattr(dataset, key, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_real_enhanced_volume_is_cut_where_nibabel_places_it():
    """A sagittal MPRAGE of many frames: nibabel's wrapper gives voxels and affine, in DICOM's directions."""
    from nibabel.nicom import dicomwrappers

    file = Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "philips_mprage.dcm.gz"
    dataset = pydicom.dcmread(io.BytesIO(gzip.decompress(file.read_bytes())))  # its pixels are blank
    pixels = np.random.default_rng(0).integers(0, 4096, len(dataset.PixelData) // 2).astype(np.uint16)
    content = again_of(dataset, PixelData=pixels.tobytes())
    wrapper = dicomwrappers.wrapper_from_data(pydicom.dcmread(io.BytesIO(content)))
    voxels, affine = np.asarray(wrapper.get_data(), np.float32), np.diag([-1, -1, 1, 1]) @ wrapper.affine
    volume = nibabel.Nifti1Image(voxels, affine).to_bytes()
    window = "range"  # nibabel leaves the rescale of functional groups out, which a range does not see
    for plane in ("axial", "coronal", "sagittal"):
        (found,) = decode(content, plane=plane, slices=1, window=window)
        (expected,) = decode(volume, plane=plane, slices=1, window=window)
        difference = np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16))
        assert found.size == expected.size and difference.max() <= 1


def test_a_series_without_a_plane_is_its_files_in_the_order_of_their_places(tmp_path):
    volume = np.random.default_rng(2).integers(0, 4096, (4, 6, 6))
    files = a_series(volume, LAID["sagittal"], WindowCenter=1000, WindowWidth=2000)
    found = decode(zipped(files[::-1]), slices=4)
    assert [np.asarray(one).tolist() for one in found] == [np.asarray(open_image(file)).tolist() for file in files]


def test_files_without_the_standards_preamble_are_a_series_too(tmp_path):
    """As ACR-NEMA and early scanners wrote them, in a folder and in a zip."""
    volume = np.random.default_rng(3).integers(0, 4096, (4, 6, 6))
    files = a_series(volume, LAID["axial"], WindowCenter=1000, WindowWidth=2000)
    bare = [file[132:] for file in files]
    for number, file in enumerate(bare):
        (tmp_path / f"I{number}").write_bytes(file)
    for source in (tmp_path, zipped(bare)):
        found = decode(source, name="scan", slices=4)
        assert [np.asarray(one).tolist() for one in found] == [np.asarray(open_image(file)).tolist() for file in files]


def test_files_without_a_series_are_one_where_no_two_stand_at_one_place(tmp_path):
    """As anonymisers leave a CT, and the X-rays of many patients in a folder."""
    files = a_series(np.arange(4 * 36).reshape(4, 6, 6), LAID["axial"], SeriesInstanceUID="")
    in_order = [np.asarray(open_image(file)).tolist() for file in files]
    nowhere = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    by_number = [again(file, **nowhere, InstanceNumber=number) for number, file in enumerate(files, 1)]
    for held in (files, by_number):
        found = decode(zipped(held), name="scan", slices=4)
        assert [np.asarray(one).tolist() for one in found] == in_order
    x_rays = [again(file, **nowhere, InstanceNumber=number) for file, number in zip(files, (1, 2, 1, 1), strict=True)]
    unlike = [again(file, **nowhere, InstanceNumber=None, Modality=f"M{n}") for n, file in enumerate(files)]
    for held in (x_rays, unlike, [*files[:2], *a_series(np.zeros((2, 5, 6)), LAID["axial"], SeriesInstanceUID=None)]):
        with pytest.raises(DataError, match=r"scan: \d series in one zip"):
            decode(zipped(held), name="scan", slices=4)
    for number, file in enumerate(x_rays):
        (tmp_path / f"{number}.dcm").write_bytes(file)
    assert [len(one) for one in medical.by_series(tmp_path, "x")[0]] == [1, 1, 1, 1]
    assert len(medical.series(tmp_path, "a cine that a row names")) == 4


def test_axes_that_are_rounded_from_slice_to_slice_are_of_one_stack(tmp_path):
    for number, file in enumerate(a_series(np.arange(4 * 36).reshape(4, 6, 6), LAID["axial"])):
        axes = [1, 0.0015 * (number % 2), 0, 0, 1, 0]
        turned = again(file, ImageOrientationPatient=axes, ImagePositionPatient=[0, 0, number], InstanceNumber=number)
        (tmp_path / f"{number}.dcm").write_bytes(turned)
    assert [file.name for file in medical.series(tmp_path, "x")] == [f"{number}.dcm" for number in range(4)]


def test_a_series_is_one_stack_after_the_other_without_second_copies(tmp_path):
    axial = a_series(np.arange(3 * 36).reshape(3, 6, 6), LAID["axial"])
    coronal = a_series(np.arange(200, 200 + 3 * 36).reshape(3, 6, 6), LAID["coronal"])
    coronal = [again(file, InstanceNumber=9 - n, SOPInstanceUID=f"5.{n}") for n, file in enumerate(coronal)]
    found = decode(zipped([*coronal, *axial, axial[1]]), slices=8)
    expected = [np.asarray(open_image(file)).tolist() for file in (*axial, *coronal)]
    assert [np.asarray(one).tolist() for one in found] == expected
    for number, file in enumerate((*axial, axial[1])):
        (tmp_path / f"{number}.dcm").write_bytes(file)
    groups, rest = medical.by_series(tmp_path, "x")
    assert [[file.name for file in one] for one in groups] == [["0.dcm", "1.dcm", "2.dcm"]]
    assert [file.name for file in rest] == ["3.dcm"]


def test_values_in_the_upper_bits_and_padding_without_a_sign_are_read_as_they_are_meant():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    shape = {"Rows": 8, "Columns": 8, "BitsStored": 12, "PixelRepresentation": 0}
    plain = a_ct(**shape, HighBit=11, PixelData=values.tobytes())
    upper = a_ct(**shape, HighBit=15, PixelData=(values << 4).tobytes())
    wrong = a_ct(**shape, HighBit=15, PixelData=values.tobytes())  # a header that says so of what lies below
    expected = np.asarray(open_image(plain)).tolist()
    assert [np.asarray(open_image(file)).tolist() for file in (upper, wrong)] == [expected] * 2
    below = (values.astype(np.int16) - 2048) << 4
    signed = shape | {"PixelRepresentation": 1, "HighBit": 15}
    assert np.asarray(open_image(a_ct(**signed, PixelData=below.tobytes()))).tolist() == expected
    scan = np.arange(64, dtype=np.int16).reshape(8, 8)
    scan[0] = -2000
    header = {"Rows": 8, "Columns": 8, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}
    dataset = pydicom.dcmread(io.BytesIO(a_ct(**header, PixelData=scan.tobytes())))
    dataset.add_new("PixelPaddingValue", "US", 63536)
    shown = np.asarray(open_image(again_of(dataset)))[..., 0]
    assert np.array_equal(shown[1:].ravel(), np.round((np.arange(8, 64) - 8) / 55 * 255))


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_the_full_range_under_a_negative_slope_is_the_picture_turned(kind):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    shape = {"Rows": 8, "Columns": 8, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    look = {"PhotometricInterpretation": kind, "RescaleSlope": -1, "RescaleIntercept": 4095}
    content = a_ct(**shape, **look, PixelData=values.tobytes())
    share = values / 4095 if kind == "MONOCHROME1" else 1 - values / 4095
    assert np.array_equal(np.asarray(open_image(content, window="full"))[..., 0], np.round(share * 255))


@pytest.mark.parametrize("kind", ["monochrome2", "MONOCHROME 2", " Monochrome1", "", None])
def test_a_kind_of_grey_is_known_however_it_is_written(kind):
    plain = "MONOCHROME1" if kind and "1" in kind else "MONOCHROME2"
    expected = open_image(a_ct(PhotometricInterpretation=plain))
    dataset = pydicom.dcmread(io.BytesIO(a_ct()))
    dataset.PhotometricInterpretation = kind
    if kind is None:
        del dataset.PhotometricInterpretation
    assert np.array_equal(open_image(again_of(dataset)), expected)


@pytest.mark.parametrize(("present", "other"), [("RescaleIntercept", 1), ("RescaleSlope", 0)])
def test_half_of_a_rescale_counts(present, other):
    """The absent one is that which changes nothing, said or not."""
    lacking = {"RescaleIntercept": "RescaleSlope", "RescaleSlope": "RescaleIntercept"}[present]
    look = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": 1000, "WindowWidth": 2000}
    whole, dataset = (pydicom.dcmread(io.BytesIO(a_ct(**look | {lacking: other}))) for _ in range(2))
    expected = by_pydicom(whole, whole.pixel_array)
    del dataset[lacking]
    assert np.array_equal(np.asarray(open_image(again_of(dataset)))[..., 0], expected)


def test_a_function_that_is_none_is_named():
    with pytest.raises(DataError, match=r"scan: VOILUTFunction is 'FOO' in its header.*; correct it"):
        open_image(a_ct(WindowCenter=40, WindowWidth=400, VOILUTFunction="FOO"), "scan")


def test_a_decimal_comma_is_a_decimal_point():
    values = np.arange(64, dtype=np.uint16).reshape(8, 8)
    shape = {"Rows": 8, "Columns": 8, "PixelRepresentation": 0, "PixelData": values.tobytes()}
    content = a_ct(**shape, WindowCenter="30.5", WindowWidth="20.5")
    expected = np.asarray(open_image(content)).tolist()
    assert np.asarray(open_image(content.replace(b"30.5", b"30,5").replace(b"20.5", b"20,5"))).tolist() == expected


def test_what_is_no_volume_is_refused_in_one_line():
    volume = np.zeros((4, 6, 6))
    files = a_series(volume, LAID["axial"])
    other = a_series(volume, LAID["coronal"], SeriesInstanceUID="1.2.3.4")
    small = a_series(volume[:, :4], LAID["axial"], SeriesInstanceUID="1.2.3.4")
    cases = {
        "missing": [*files[:1], *files[2:]],
        "two slices at one place": [*files, again(files[0], InstanceNumber=9)],
        "several directions": [*files[:2], other[0]],
        "of 2 sizes": [*files[:2], small[2]],
        "2 series": [*files[:2], again(files[2], SeriesInstanceUID="9")],
        "one slice": files[:1],
        "no PixelSpacing": [again(file, PixelSpacing=None) for file in files],
    }
    for words, held in cases.items():
        with pytest.raises(DataError, match=words) as error:
            decode(zipped(held), name="scan", plane="coronal", slices=1)
        assert str(error.value).startswith("scan") and "\n" not in str(error.value)
    broken = bytearray(zipped(files))
    broken[len(broken) // 2] ^= 255
    with pytest.raises(DataError, match="scan"):
        decode(bytes(broken), name="scan", plane="coronal", slices=1)


def test_slices_of_a_volume_read_it_once(monkeypatch, tmp_path):
    """A case's slices have names of their own, and still share one volume, of DICOM and of NIfTI."""
    volume = np.random.default_rng(3).integers(0, 4096, (6, 6, 6))
    (tmp_path / "series").mkdir()
    for number, file in enumerate(a_series(volume, LAID["axial"])):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(file)
    (tmp_path / "scan.nii").write_bytes(as_nifti(volume, LAID["axial"]))
    images = [{"path": name, "plane": "coronal", "slices": 5, "window": "bone"} for name in ("series", "scan.nii")]
    row = {"id": "1", "question": "What?", "options": ["a", "b"], "answer": "A", "images": images}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    made = []
    for module, name in ((medical, "_dicom_volume"), (nifti, "_values")):
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, make=make: made.append(make.__name__) or make(*a))
    (case,) = load_cases(tmp_path, "train")
    pictures = [np.asarray(image.picture()).tolist() for image in case.images]
    assert len(pictures) == 10 and pictures[:5] == pictures[5:] and made == ["_dicom_volume", "_values"]
    assert len({image.sha256 for image in case.images}) == 10


def test_headers_that_would_make_one_grey_of_a_picture_are_refused():
    """A slope of 0 or without end, and a volume whose header calls infinity its brightest."""
    for slope in ("0", "1e400"):
        with pytest.raises(DataError, match=r"scan: RescaleSlope is (0|inf) in its header"):
            decode(a_ct(RescaleSlope=slope, RescaleIntercept="0"), name="scan")
    with pytest.raises(DataError, match=r"scan: WindowCenter is 9000 and WindowWidth 10 .* from -1024 to 3071"):
        decode(a_ct(WindowCenter="9000", WindowWidth="10"), name="scan")
    assert np.asarray(decode(a_ct(WindowCenter="-1100", WindowWidth="400"))[0]).std() > 0  # an end of it is seen
    values = np.random.default_rng(4).integers(0, 1000, (6, 7, 8)).astype(np.int16)
    plain, endless = (nibabel.Nifti1Image(values, np.eye(4)) for _ in range(2))
    endless.header["cal_max"] = np.inf
    shown = [np.asarray(decode(image.to_bytes(), slices=[3])[0]) for image in (plain, endless)]
    assert np.array_equal(*shown) and shown[0].std() > 0


def test_what_is_more_or_less_than_a_header_says_is_named():
    rows = a_ct()
    dataset = pydicom.dcmread(io.BytesIO(rows))
    with pytest.raises(DataError, match="2 pictures where its header says one; set NumberOfFrames"):
        decode(a_ct(PixelData=2 * dataset.PixelData), name="scan")
    for frames in (-1, 2_000_000_000):
        with pytest.raises(DataError, match=f"scan: NumberOfFrames is {frames} in its header, of 6,144 bytes"):
            decode(a_ct(NumberOfFrames=frames), name="scan", slices=2)
    volume = bytearray(nibabel.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4)).to_bytes())
    volume[108:112] = bytes(4)  # vox_offset, at which nibabel would begin
    with pytest.raises(DataError, match="scan: vox_offset is 0 in its header, which is 348 bytes; correct it"):
        decode(bytes(volume), name="scan", slices=1)
    pair = nibabel.Nifti1Pair(np.zeros((3, 3, 3), np.int16), np.eye(4))
    with pytest.raises(DataError, match=r"the header of a NIfTI pair \(.hdr and .img\)"):
        decode(pair.header.binaryblock + bytes(4), name="scan.hdr", slices=1)


@pytest.mark.parametrize(
    ("bits", "entries"),
    [
        (8, np.arange(4096) // 16),
        (8, (np.arange(4096) // 16).astype(np.uint8)),  # packed
        (12, np.arange(4096)),
        (16, np.arange(4096)),  # says 16, holds 12
        (16, np.arange(4096) * 16),
    ],
)
def test_a_lookup_table_of_values_is_read_at_its_own_depth(bits, entries):
    dataset = pydicom.dcmread(io.BytesIO(a_ct()))
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    dataset.Rows, dataset.Columns, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 64, 64, 16, 15, 0
    dataset.PixelData, dataset.RescaleSlope, dataset.RescaleIntercept = values.tobytes(), 1, 0
    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, bits]
    lut.LUTData = (entries if entries.dtype == np.uint8 else entries.astype("<u2")).tobytes()
    lut["LUTData"].VR = "OW"
    dataset.VOILUTSequence = [lut]
    shown = np.asarray(open_image(again_of(dataset), "ct"))[..., 0]
    assert np.abs(shown.astype(int) - values // 16).max() <= 1


def test_colours_of_8_bits_in_16_are_not_black():
    ramp = np.tile(np.arange(256, dtype=np.uint16), (4, 1))
    dataset = pydicom.dcmread(io.BytesIO(a_ct()))
    for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        dataset.pop(name, None)
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 4, 256, 8, 8, 7
    dataset.PixelData, dataset.PixelRepresentation = ramp.astype(np.uint8).tobytes(), 0
    dataset["PixelData"].VR = "OB"
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    for colour in ("Red", "Green", "Blue"):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        dataset[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{colour}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())
    assert np.array_equal(np.asarray(open_image(again_of(dataset), "us"))[..., 1], ramp)
