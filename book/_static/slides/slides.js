// Slides: a page of the book shown one section at a time, its first slide the page's title.
// Keys: right, space, page down; left, page up; home, end; escape ends. Printing gives one page for each slide.
(() => {
    const page = document.querySelector("article > section");
    const title = [...page.children].filter(child => child.tagName !== "SECTION");
    const slides = [title, ...[...page.children].filter(child => child.tagName === "SECTION").map(child => [child])];
    const paper = document.createElement("style");
    paper.textContent = "@page { size: 1280px 720px; margin: 30px 70px; }";
    const scale = () => document.body.style.setProperty("--screen", Math.min(innerWidth / 1280, innerHeight / 720));
    let now = 0;

    function show(number) {
        now = Math.max(0, Math.min(slides.length - 1, number));
        slides.forEach((parts, i) => parts.forEach(part => part.classList.toggle("shown", i === now)));
        page.dataset.slide = `${now + 1} / ${slides.length}`;
        dispatchEvent(new Event("resize"));  // figures that draw themselves measure the new width
        location.replace(now ? `#${slides[now][0].id}` : "#");
        page.parentElement.scrollTop = 0;
    }

    function present(on) {
        document.body.classList.toggle("presenting", on);
        if (on) document.head.append(paper);
        else paper.remove();
        if (on) show(Math.max(0, slides.findIndex(([first]) => first.id && `#${first.id}` === location.hash)));
    }

    document.addEventListener("keydown", event => {
        const used = event.defaultPrevented || event.target.closest("input, select, button");
        if (used || !document.body.classList.contains("presenting")) return;
        const last = slides.length - 1;
        const steps = {ArrowRight: 1, " ": 1, PageDown: 1, ArrowLeft: -1, PageUp: -1, Home: -last, End: last};
        if (event.key === "Escape") present(false);
        else if (event.key in steps) {
            event.preventDefault();
            show(now + steps[event.key]);
        }
    });
    addEventListener("resize", scale);
    scale();
    document.querySelector("button.present").addEventListener("click", event => {
        event.target.blur();
        present(true);
    });
    present(new URLSearchParams(location.search).has("present"));
})();
