"""Steps beside a run, for those who must try something before they decide."""
