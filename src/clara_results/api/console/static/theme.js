// Before anything is drawn: light or dark as the person chose here last, or as the system says.
"use strict";
{
  const kept = localStorage.getItem("clara-theme");
  if (kept) document.documentElement.dataset.theme = kept;
}
