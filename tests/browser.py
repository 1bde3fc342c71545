"""Pages in a real chromium: a tab that notices every complaint and every request."""

import time

WIDTHS = {"desktop": (1440, 900), "phone": (390, 844)}


class Tab:
    """A tab that remembers what it asked for and what went wrong."""

    def __init__(self, browser, size=WIDTHS["desktop"], touch=False, offline=True):
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, offline=offline, has_touch=touch, is_mobile=touch
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type != "log" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"alert: {dialog.message}"))

    def open(self, output: str, fragment: str = "", ready: str = ".card, .nothing"):
        """Go to a page, a file or a URL, and wait for an element that is there once it has drawn itself."""
        self.page.goto(f"{output}{fragment}" if "://" in output else f"file://{output}{fragment}")
        self.page.wait_for_selector(ready)
        return self.page

    def outside(self, output: str) -> list[str]:
        """Requests for anything but the page, what is inside it, and the folder beside it."""
        beside = "file://" + output.removesuffix(".html") + ".files/"
        own = ("data:", "blob:", beside)
        return [url for url in self.requests if url.partition("#")[0] != f"file://{output}" and not url.startswith(own)]


def until(page, expression: str) -> None:
    """Wait for an expression to be true. Playwright's own waiting evaluates text in the page, which its policy forbids."""
    stop = time.monotonic() + 90
    while not page.evaluate(expression):
        assert time.monotonic() < stop, f"never: {expression}"
        page.wait_for_timeout(30)
