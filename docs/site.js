// A table that is wider than the page is scrolled inside a wrapper that Material makes: keys must reach it too.
const reachable = () => document.querySelectorAll(".md-typeset__scrollwrap").forEach((wrap) => (wrap.tabIndex = 0));
document$.subscribe(() => {
  reachable();
  new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true });
});
