(() => {
  const large = document.getElementById("large");
  const pictures = [...document.querySelectorAll(".panels img")];
  let shown = 0;
  const show = (index) => {
    shown = (index + pictures.length) % pictures.length;
    large.querySelector("img").src = pictures[shown].src;
    large.querySelector("p").textContent = pictures[shown].alt;
    if (!large.open) large.showModal();
  };
  pictures.forEach((picture, index) => picture.parentElement.addEventListener("click", () => show(index)));
  large.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) show(shown + step);
  });
})();
