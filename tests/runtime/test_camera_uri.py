"""Addresses of cameras: no password is shown, no option is guessed, and what cannot be meant is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdedge.errors import SourceError, UsageError
from rdedge.sources import is_camera, open_source
from rdedge.sources.csi import csi_pipeline
from rdedge.sources.gstreamer import quoted
from rdedge.sources.uri import device_of, masked
from rdedge.sources.watched import WatchedSource


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://op:s3cret@10.0.0.5:554/line", "rtsp://op:***@10.0.0.5:554/line"),
        ("rtsp://op:s/3#c?r:e@t@10.0.0.5/line", "rtsp://op:***@10.0.0.5/line"),
        ("rtsp://:s3cret@10.0.0.5/line", "rtsp://:***@10.0.0.5/line"),
        ("rtsp://op@10.0.0.5/line", "rtsp://op@10.0.0.5/line"),
        ("http://10.0.0.5/v?user=op&Password=s3cret&x=1", "http://10.0.0.5/v?user=op&Password=***&x=1"),
        ("trigger+rtsp://op:s3cret@h/line#from=stdin", "trigger+rtsp://op:***@h/line#from=stdin"),
        ("rtsp://10.0.0.5:554/line", "rtsp://10.0.0.5:554/line"),
    ],
)
def test_a_password_is_masked(uri: str, shown: str) -> None:
    assert masked(uri) == shown


@given(st.text(min_size=4).filter(lambda word: "\n" not in word and word.strip("*") == word))
def test_no_password_whatsoever_is_shown(password: str) -> None:
    assert password not in masked(f"rtsp://u:{password}@h").replace("rtsp://u:", "").replace("@h", "")


def test_a_source_is_known_by_its_masked_address() -> None:
    source = open_source("rtsp://op:s3cret@127.0.0.1:9/line")
    assert isinstance(source, WatchedSource)
    assert source.name == "rtsp://op:***@127.0.0.1:9/line"
    source.close()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://10.0.0.5/x", "unknown kind of camera; use a path or one of v4l2://, csi://, rtsp://"),
        ("ftp://op:s3cret@h/x", r"ftp://op:\*\*\*@h/x: unknown kind of camera"),
        ("gige://10.0.0.5?trigger=software", r"nothing fires it; write trigger\+"),
        ("trigger+csi://0", "triggers from ''; write #from=udp:127.0.0.1:7000 or #from=stdin"),
        ("trigger+csi://0#from=udp:7000", "triggers from 'udp:7000'"),
        ("trigger+csi://0#from=udp:127.0.0.1:70000", "triggers from 'udp:127.0.0.1:70000'"),
        ("trigger+csi://0#form=stdin", "no option form; it knows from, delay_ms, max_lag_ms"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_opened(uri: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        open_source(uri)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("csi://x", "camera 'x'; write csi://0"),
        ("csi://", "camera ''"),
        ("csi://0?width=0", "width is '0'; give a number above 0"),
        ("csi://0?width=640.5", "width is 640.5; give a whole number"),
        ("csi://0?fps=nan", "fps is 'nan'"),
        ("csi://0?flip=8", "flip is 8; give nvvidconv's flip-method, 0 to 7"),
        ("csi://0?flip=1.5", "flip is 1.5"),
        ("csi://0?exposure=5", "no option exposure; it knows width, height, fps, exposure_us, flip"),
        ("csi://0?fps=30&fps=60", "an option stands twice"),
        ("v4l2:///dev/null?fourcc=MJPEG", "fourcc is 'MJPEG'; give the four letters"),
        ("v4l2:///dev/null?gain=1", "no option gain"),
        ("rtsp://", "no host; write SCHEME://host:port/path"),
        ("rtsp://h:port/x", "no address"),
        ("http:///video", "no host"),
        ("http://h:99999/x", "no address"),
        ("gige://", "no camera; write gige://ADDRESS"),
        ("gige://10.0.0.5?gain=much", "gain is 'much'; give a number above -1000"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_opened(uri: str, says: str) -> None:
    for wrapped in (uri, f"trigger+{uri}#from=stdin"):
        with pytest.raises(UsageError, match=says):
            open_source(wrapped)


def test_options_are_split_from_the_device() -> None:
    device, options = device_of("v4l2:///dev/video%30?width=640", known=("width", "fps"))
    assert (device, options.count("width"), options.count("fps")) == ("/dev/video0", 640, None)


def test_paths_stay_paths(tmp_path: Path) -> None:
    assert not is_camera(str(tmp_path)) and not is_camera("folder:/a") and not is_camera("C:/parts")
    assert is_camera("csi://0") and is_camera("trigger+csi://0")
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source("folder:nowhere")


def test_the_csi_pipeline_is_the_documented_one() -> None:
    """Element, property and caps names as in NVIDIA's Jetson Linux Developer Guide, "Accelerated GStreamer"."""
    assert csi_pipeline("csi://1?width=1280&height=720&fps=60&exposure_us=2000&flip=2") == (
        'nvarguscamerasrc sensor-id=1 exposuretimerange="2000000 2000000"'
        " ! video/x-raw(memory:NVMM),width=(int)1280,height=(int)720,format=(string)NV12,framerate=(fraction)60/1"
        " ! nvvidconv flip-method=2 ! video/x-raw,format=(string)BGRx ! videoconvert"
    )
    assert csi_pipeline("csi://0").startswith(
        "nvarguscamerasrc sensor-id=0 ! video/x-raw(memory:NVMM),width=(int)1920,"
    )


def test_a_quoted_value_cannot_leave_its_quotes() -> None:
    assert quoted('a"! fakesink \\') == '"a\\"! fakesink \\\\"'
