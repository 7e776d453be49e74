"""A headless Chromium, driven through chromedriver's HTTP interface (W3C WebDriver) with the standard library."""

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
KEYS = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015"}
KEYS.update({"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004"})
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver marks an element with


def missing():
    """What to install, or "" if Chromium and chromedriver are there."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    return "no Chromium here: apt-get install chromium chromium-driver"


class Browser:
    """One browser process with one window. `profile` is a new, empty folder."""

    def __init__(self, profile):
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # chromedriver is on this machine
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)))[
                1
            ]
            self.address = f"http://127.0.0.1:{port}/session"
            options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
            session = self._request("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.driver.kill()
            raise
        self.address += "/" + session["sessionId"]

    def _request(self, method, path, content=None):
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with self.opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"])

    def close(self):
        try:
            self._request("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(10)
            self.driver.stdout.close()

    def open(self, file):
        self._request("POST", "/url", {"url": file.as_uri()})

    def run(self, script, *arguments):
        """What a JavaScript function body returns."""
        return self._request("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def click(self, selector):
        found = self._request("POST", "/element", {"using": "css selector", "value": selector})
        self._request("POST", f"/element/{found[ELEMENT]}/click", {})

    def press(self, *names):
        """Presses keys, one after the other; as a user does, at whatever has the focus."""
        keys = [KEYS.get(name, name) for name in names]
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._request("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def devtools(self, command, **parameters):
        return self._request("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def dark(self, on):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file):
        file.write_bytes(base64.b64decode(self._request("GET", "/screenshot")))

    def console(self):
        """The messages of the console since this was last asked."""
        return [entry["message"] for entry in self._request("POST", "/se/log", {"type": "browser"})]

    def requested(self):
        """The addresses that were requested since this was last asked."""
        entries = self._request("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = (message for message in messages if message["method"] == "Network.requestWillBeSent")
        return [message["params"]["request"]["url"] for message in sent]
