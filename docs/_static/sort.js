// A click on a heading of a table in a "sortable" block sorts its rows.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".sortable table")) {
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[column].textContent.trim();
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          const [m, n] = [parseFloat(x), parseFloat(y)];
          // Rows without a number go last, whatever the direction.
          if (isNaN(m) !== isNaN(n)) return isNaN(m) ? 1 : -1;
          const order = isNaN(m) ? x.localeCompare(y) : m - n;
          return up ? order : -order;
        };
        const body = table.tBodies[0];
        [...body.rows].sort(compare).forEach((row) => body.appendChild(row));
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
    });
  }
});
