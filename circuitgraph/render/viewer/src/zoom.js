// Moving and zooming by drag, wheel, two fingers or a call. With {k, x, y} a point p of the layout stands at k p + (x, y).

const [LEAST, MOST] = [0.05, 10];
const CLICK = 3; // px that a pointer may travel and still click
const REST = 150; // ms after the last turn of the wheel

export class Zoom {
  transform = { k: 1, x: 0, y: 0 };
  pointers = new Map(); // id -> where it is on the stage
  travelled = 0;

  // `left` px of the stage are no part of the layout. onMove(by hand) is told of every change, onRest when a hand has ended.
  constructor(stage, left, onMove, onRest) {
    Object.assign(this, { stage, left, onMove, onRest });
    const listen = (name, action, options) => stage.addEventListener(name, action, options);
    listen("wheel", (event) => this.turn(event), { passive: false });
    listen("pointerdown", (event) => this.press(event));
    listen("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"]) listen(name, (event) => this.release(event));
    listen("click", (event) => this.travelled > CLICK && event.stopImmediatePropagation(), true); // it ended a drag
  }

  set(k, x, y, byHand = false) {
    this.transform = { k, x, y };
    this.onMove(byHand);
  }

  move(dx, dy, byHand) {
    const { k, x, y } = this.transform;
    this.set(k, x + dx, y + dy, byHand);
  }

  // What stands at this point of the stage stays there.
  scale(factor, [px, py] = [this.stage.clientWidth / 2, this.stage.clientHeight / 2], byHand) {
    const { k, x, y } = this.transform;
    const to = Math.min(MOST, Math.max(LEAST, k * factor));
    const at = (p, origin) => p - ((p - origin) * to) / k;
    this.set(to, at(px - this.left, x), at(py, y), byHand);
  }

  point(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  turn(event) {
    event.preventDefault();
    const unit = [0.002, 0.05, 1][event.deltaMode] * (event.ctrlKey ? 10 : 1); // px, lines, pages; fingers on a pad come with ctrl
    this.scale(2 ** (-event.deltaY * unit), this.point(event), true);
    clearTimeout(this.resting);
    this.resting = setTimeout(this.onRest, REST);
  }

  press(event) {
    if (event.button) return;
    if (!this.pointers.size) this.travelled = 0;
    this.pointers.set(event.pointerId, this.point(event));
  }

  drag(event) {
    const from = this.pointers.get(event.pointerId);
    if (!from) return;
    const to = this.point(event);
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
    this.pointers.set(event.pointerId, to);
    this.travelled += Math.hypot(dx, dy);
    if (this.travelled > CLICK) this.stage.setPointerCapture(event.pointerId);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (!other) return this.move(dx, dy, true);
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    this.scale(distance(to) / (distance(from) || 1), other, true);
  }

  release(event) {
    if (this.pointers.delete(event.pointerId) && !this.pointers.size && this.travelled) this.onRest();
  }
}
