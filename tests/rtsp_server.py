"""Stream H.264 over RTSP with GStreamer, under the system's Python.

Usage: rtsp_server.py PORT WIDTH HEIGHT FPS [udp]. It prints a line when it listens. With `udp`, it
refuses TCP for the video.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

Gst.init(None)
port, width, height, fps, *transport = sys.argv[1:]
factory = GstRtspServer.RTSPMediaFactory()
if transport == ["udp"]:
    factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
factory.set_shared(True)
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball"
    f" ! video/x-raw,width={width},height={height},framerate={fps}/1"
    " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10"
    " ! rtph264pay name=pay0 pt=96 config-interval=1 )"
)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
server.get_mount_points().add_factory("/door", factory)
server.attach(None)
print("listening", flush=True)
GLib.MainLoop().run()
