"""Pages in a real Chromium, for episodes side by side: what a policy does in one reaches no other, and not the host.

    browser = Browser()
    page = browser.open("http://127.0.0.1:8000/")
    print(observe(page))                          # [42] textbox 'Owner' ...
    error = perform(page, parse_action("fill('42', 'Ann')"))

chromium  the browser, its deadlines and its walls
tree      the accessibility tree of a page as text, with an id for each element
actions   BrowserGym's actions, parsed without being run, compared by value, performed

What keeps a page from what:

network    a context may reach the origins that it was opened for. All other requests are aborted; what is not asked
           (WebRTC, prefetches) meets a proxy that refuses everything, and a resolver that knows no name
host       no downloads, no permissions, no popups; dialogs are dismissed; only http and https can be gone to, so that
           neither files nor the browser's own pages can be read
episodes   a context each: no cookies, storage or cache in common. They share one browser process
time       every call has a deadline: what misses it ends that episode alone, as `EpisodeFailed`
the end    Chromium ends with this process, however that ends

What it is not: a virtual machine. Chromium's own sandbox of its renderers is on, except as root, under which it cannot
start. Serve pages of unknown origin in a container without privileges.
"""

from posttrain.browser.actions import Action, parse_action, perform
from posttrain.browser.chromium import Browser, Page
from posttrain.browser.tree import observe

__all__ = ["Action", "Browser", "Page", "observe", "parse_action", "perform"]
