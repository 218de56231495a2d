/* The page: a file goes out, its mask comes back and is shown. Decides what is seen when. */

import * as api from "./api";
import { Structures } from "./structures";
import type { Place, Plane, Underlay, Viewer } from "./viewer";

type Section = "asking" | "working" | "done";

const NIFTI = "application/gzip";
const SEG = "application/dicom";

const CAVEATS: Record<Underlay, string> = {
  scan: "",
  unreadable: "This page cannot draw a scan of this kind: the mask is shown alone.",
  elsewhere: "This page places the scan elsewhere than the server did: the mask is shown alone.",
};

/** A scan that is worked on or was answered; ends when another begins. */
class Errand {
  readonly stopped = new AbortController();
  job = "";
  mask: Blob | null = null;
  constructor(readonly scan: File) {}

  end(): void {
    this.stopped.abort();
    if (this.job) api.forget(this.job);
  }
}

function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

const model = element<HTMLSelectElement>("model");
const input = element<HTMLInputElement>("file");
const opacity = element<HTMLInputElement>("opacity");

let errand: Errand | null = null;
let viewer: Promise<Viewer | null> | null = null;
let names = new Map<number, string>();

const structures = new Structures(element("structures"), element("all"), {
  show: (values) => void viewer?.then((one) => one?.reveal(values)),
  visit: (value) => void viewer?.then((one) => one?.visit(value)),
});

// --- what is seen --------------------------------------------------------------------------

function show(section: Section): void {
  for (const one of ["asking", "working", "done"]) element(one).hidden = one !== section;
}

function complain(error: unknown): void {
  const known = error instanceof api.Problem;
  element("problem-title").textContent = known ? error.title : "Something in this page failed";
  element("problem-detail").textContent = known ? error.detail : String(error);
  element("problem-id").textContent = known && error.request ? `Request ${error.request}` : "";
  element("again").hidden = !errand || !api.mayWorkLater(error);
  element("problem").hidden = false;
  element("problem").scrollIntoView({ block: "nearest" });
  if (known && (error.status === 401 || error.status === 403)) {
    element<HTMLDetailsElement>("access").open = true;
    element("token").focus();
  }
}


function told({ state, share }: api.Progress): void {
  const scan = errand?.scan;
  if (!scan) return;
  const stages = { sending: "Sending", queued: "Waiting for its turn", running: "Segmenting" };
  const bar = element<HTMLProgressElement>("share");
  if (state === "queued") bar.removeAttribute("value");
  else bar.value = share;
  const stage = element("stage");
  if (stage.textContent !== stages[state]) stage.textContent = stages[state];
  element("amount").textContent =
    state === "sending"
      ? `${megabytes(scan.size * share)} of ${megabytes(scan.size)} MB`
      : state === "running"
        ? `${Math.round(100 * share)} %`
        : "";
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}

// --- one scan ------------------------------------------------------------------------------

async function segment(scan: File): Promise<void> {
  errand?.end();
  const own = (errand = new Errand(scan));
  const { signal } = own.stopped;
  element("problem").hidden = true;
  element("working-name").textContent = scan.name;
  told({ state: "sending", share: 0 });
  show("working");
  try {
    own.job = await api.submit(scan, model.value, told, signal);
    await api.finished(own.job, told, signal);
    const [report, mask] = await Promise.all([
      api.report(own.job, signal),
      api.file(own.job, NIFTI, signal),
    ]);
    own.mask = mask;
    await present(own, report);
  } catch (error) {
    if (errand !== own || signal.aborted) return;
    show("asking");
    complain(error);
  }
}

async function present(own: Errand, report: api.Report): Promise<void> {
  names = new Map(report.structures.map((one) => [one.value, one.structure]));
  element("done-title").textContent = own.scan.name;
  const seconds = Object.values(report.seconds).reduce((sum, one) => sum + one, 0);
  element("told").textContent = [report.model.name, version(report), `${seconds.toFixed(1)} s`].filter(Boolean).join(" · ");
  const doubtful = report.structures.filter((one) => one.needs_review).map((one) => one.structure);
  element("review").hidden = !doubtful.length;
  element("review").textContent = `A reader has to look at: ${doubtful.join(", ")}`;
  element("seg").hidden = !own.scan.name.toLowerCase().endsWith(".zip");
  show("done");
  const caveat = await draw(own);
  structures.fill(report.structures);
  element("caveat").textContent = caveat;
  element("caveat").hidden = !caveat;
  element("done-title").focus();
}

function version({ model }: api.Report): string {
  return model.version && `version ${model.version}`;
}

/** Draw the mask over its scan; returns what is to be said about the picture. */
async function draw(own: Errand): Promise<string> {
  viewer ??= drawing();
  const drawn = await viewer;
  for (const id of ["stand", "planes", "place", "hint"]) element(id).hidden = !drawn;
  if (!drawn) return "This browser draws no slices: it has no WebGL2. The table and the mask are complete.";
  try {
    const underlay = await drawn.show(own.scan, own.mask!);
    drawn.cover(opacity.valueAsNumber / 100);
    return CAVEATS[underlay];
  } catch (error) {
    return `The slices cannot be drawn (${String(error)}). The table and the mask are complete.`;
  }
}

async function drawing(): Promise<Viewer | null> {
  if (!document.createElement("canvas").getContext("webgl2")) return null;
  const { Viewer } = await import("./viewer");
  return Viewer.on(element<HTMLCanvasElement>("canvas"), standing);
}

function standing({ mm, intensity, label }: Place): void {
  const [x, y, z] = mm.map((one) => one.toFixed(1));
  const parts = [`x ${x}, y ${y}, z ${z} mm`];
  if (intensity !== null) parts.push(`intensity ${Number(intensity.toPrecision(4))}`);
  element("place").textContent = [...parts, names.get(label) ?? "no structure"].join(" · ");
}

function save(data: Blob, suffix: string): void {
  const stem = (errand?.scan.name ?? "scan").replace(/\.(nii|nii\.gz|nii\.bz2|nrrd|zip|png|jpe?g)$/i, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(data);
  link.download = stem + suffix;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function saveSeg(): Promise<void> {
  const button = element<HTMLButtonElement>("seg");
  button.disabled = true;
  try {
    if (errand) save(await api.file(errand.job, SEG, errand.stopped.signal), "_seg.dcm");
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
}

function leave(): void {
  errand?.end();
  errand = null;
  input.value = "";
  element("problem").hidden = true;
  show("asking");
  input.focus();
}

// --- who serves ----------------------------------------------------------------------------

async function greet(): Promise<void> {
  try {
    const served = await api.models();
    const chosen = model.value;
    model.replaceChildren(...served.map((one) => new Option(one.name, one.name, one.default)));
    if (served.some((one) => one.name === chosen)) model.value = chosen;
    element("choosing").hidden = served.length < 2;
    element("problem").hidden = true;
    introduce(served);
  } catch (error) {
    complain(error);
  }
}

function introduce(served: readonly api.Model[]): void {
  const one = served.find(({ name }) => name === model.value);
  const found = one?.structures?.map(({ structure }) => structure) ?? [];
  element("serving").textContent = found.length ? `Finds ${found.join(", ")}` : "";
  model.onchange = () => introduce(served);
}

// --- what is pressed -----------------------------------------------------------------------

input.addEventListener("change", () => {
  const scan = input.files?.[0];
  if (scan) void segment(scan);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
  });
}
document.addEventListener("drop", (event) => {
  const scan = event.dataTransfer?.files[0];
  if (scan) void segment(scan);
});
element("cancel").addEventListener("click", leave);
element("next").addEventListener("click", leave);
element("again").addEventListener("click", () => errand && void segment(errand.scan));
element("nifti").addEventListener("click", () => errand?.mask && save(errand.mask, "_mask.nii.gz"));
element("seg").addEventListener("click", () => void saveSeg());
element("access-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.keepToken(element<HTMLInputElement>("token").value.trim());
  element<HTMLDetailsElement>("access").open = false;
  void greet();
});
element("planes").addEventListener("click", ({ target }) => {
  const plane = (target as HTMLElement).dataset["plane"] as Plane | undefined;
  if (!plane) return;
  for (const one of element("planes").querySelectorAll("button")) {
    one.ariaPressed = String(one.dataset["plane"] === plane);
  }
  void viewer?.then((one) => one?.plane(plane));
});
opacity.addEventListener("input", () => {
  element("opacity-told").textContent = `${opacity.value} %`;
  void viewer?.then((one) => one?.cover(opacity.valueAsNumber / 100));
});
addEventListener("pagehide", () => errand?.end());

element<HTMLInputElement>("token").value = api.token();
void greet();
