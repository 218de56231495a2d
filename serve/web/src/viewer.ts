/* Slices of a scan in three planes with its mask over them, by NiiVue. Knows no server. */

import { NVImage, Niivue, SLICE_TYPE } from "@niivue/niivue";
import { colorOf } from "./colors";
import { stackOf } from "./dicom";

export type Plane = "all" | "axial" | "coronal" | "sagittal";

type Frame = [left: number, top: number, width: number, height: number];

const PLANES = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
} as const;

/** Where each of three planes lies, in shares of the canvas: beside each other where it is wide. */
const WIDE: Record<keyof typeof PLANES, Frame> = {
  axial: [0, 0, 0.6, 1],
  coronal: [0.605, 0, 0.395, 0.497],
  sagittal: [0.605, 0.503, 0.395, 0.497],
};
const TALL: Record<keyof typeof PLANES, Frame> = {
  axial: [0, 0, 1, 0.6],
  coronal: [0, 0.605, 0.497, 0.395],
  sagittal: [0.503, 0.605, 0.497, 0.395],
};

/** Which way a key moves the crosshair, in voxels to the right, the front and the top. */
const KEYS: Record<string, readonly [number, number, number]> = {
  ArrowLeft: [-1, 0, 0],
  ArrowRight: [1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};

const LABELS = 256;

/** What NIfTI calls a volume whose values are names: never blended into each other. */
const INTENT_LABEL = 1002;
const FLOAT32 = 16;

/** What lies under the mask. */
export type Underlay = "scan" | "unreadable" | "elsewhere";

/** Where the crosshair is. */
export interface Place {
  mm: readonly number[];
  /** Of the scan; null where the mask lies alone. */
  intensity: number | null;
  label: number;
}

interface Location {
  mm: ArrayLike<number>;
  values: { value: number }[];
}

export class Viewer {
  private mask: NVImage | null = null;
  private alone = false;
  private seen: Plane = "all";

  private constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly niivue: Niivue,
    private readonly told: (place: Place) => void,
  ) {}

  /** Draw on a canvas from now on; `told` hears where the crosshair is. Fails without WebGL2. */
  static async on(canvas: HTMLCanvasElement, told: (place: Place) => void): Promise<Viewer> {
    const niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.55, 0.65, 0.85, 1],
      crosshairWidth: 0.4,
      crosshairWidthUnit: "percent",
      crosshairGap: 6,
      fontColor: [0.75, 0.78, 0.83, 1],
      isRadiologicalConvention: true,
      dragAndDropEnabled: false,
      loadingText: "",
      logLevel: "error",
    });
    const viewer = new Viewer(canvas, niivue, told);
    niivue.onLocationChange = (location) => viewer.moved(location as Location);
    await niivue.attachToCanvas(canvas);
    // Before NiiVue's own keys, some of which change what nobody could change back here.
    canvas.parentElement?.addEventListener("keydown", (event) => viewer.key(event), { capture: true });
    canvas.parentElement?.addEventListener("keyup", (event) => event.stopPropagation(), { capture: true });
    new ResizeObserver(() => viewer.arrange()).observe(canvas);
    return viewer;
  }

  /** Show a mask over the scan that it belongs to, or alone if that cannot be shown truthfully. */
  async show(scan: File | null, mask: Blob): Promise<Underlay> {
    for (const volume of [...this.niivue.volumes]) this.niivue.removeVolume(volume);
    const packed = new File([mask], "mask.nii.gz");
    const over = await NVImage.loadFromFile({ file: packed });
    over.hdr!.intent_code = INTENT_LABEL;
    // Before it is seen: without colours of its own it would show in grey for a moment.
    over.setColormapLabel(colors(new Set()));
    const read = scan && (await readable(scan));
    const fits = read && sameGrid(read, over);
    const under = fits ? read : await NVImage.loadFromFile({ file: packed, opacity: 0 });
    this.niivue.addVolume(under);
    this.niivue.addVolume(over);
    [this.mask, this.alone] = [over, !fits];
    this.niivue.createOnLocationChange();
    if (fits) return "scan";
    return read ? "elsewhere" : "unreadable";
  }

  /** Show only these label values. */
  reveal(values: ReadonlySet<number>): void {
    if (!this.mask) return;
    this.mask.setColormapLabel(colors(values));
    this.niivue.updateGLVolume();
  }

  /** How much of the scan the mask covers, 0 to 1. */
  cover(opacity: number): void {
    if (this.niivue.volumes.length > 1) this.niivue.setOpacity(1, opacity);
  }

  plane(plane: Plane): void {
    this.seen = plane;
    this.arrange();
  }

  /** Move the crosshair to the voxel of a label that is nearest to the middle of all of them. */
  visit(value: number): void {
    const voxel = this.mask && middle(this.mask, value);
    if (!this.mask || !voxel) return;
    const [x, y, z] = voxel.map((at, axis) => (at + 0.5) / this.mask!.dimsRAS![axis + 1]!);
    this.niivue.scene.crosshairPos = [x!, y!, z!];
    this.niivue.drawScene();
    this.niivue.createOnLocationChange();
  }

  private arrange(): void {
    const { seen, canvas } = this;
    const frames = canvas.clientWidth > 1.15 * canvas.clientHeight ? WIDE : TALL;
    const planes = Object.keys(PLANES) as (keyof typeof PLANES)[];
    this.niivue.setCustomLayout(
      planes
        .filter((plane) => seen === "all" || seen === plane)
        .map((plane) => ({ sliceType: PLANES[plane], position: seen === "all" ? frames[plane] : [0, 0, 1, 1] })),
    );
  }

  private key(event: KeyboardEvent): void {
    event.stopPropagation();
    const step = KEYS[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.niivue.moveCrosshairInVox(...step);
  }

  private moved({ mm, values }: Location): void {
    this.told({
      mm: [0, 1, 2].map((axis) => mm[axis] ?? 0),
      intensity: this.alone ? null : (values[0]?.value ?? null),
      label: values[1]?.value ?? 0,
    });
  }
}

/** Each label value in its colour, and only some to be seen. */
function colors(seen: ReadonlySet<number>) {
  const labels = [...Array(LABELS).keys()];
  const channel = (at: 0 | 1 | 2) => labels.map((value) => colorOf(value)[at]);
  const A = labels.map((value) => (seen.has(value) ? 255 : 0));
  return { R: channel(0), G: channel(1), B: channel(2), A, I: labels };
}

/** A scan as an image, or null if it is of a kind that cannot be drawn here. */
async function readable(scan: File): Promise<NVImage | null> {
  try {
    if (!/\.zip$/i.test(scan.name)) return await NVImage.loadFromFile({ file: scan });
    const stack = await stackOf(scan);
    if (!stack) return null;
    const { size, spacing, affine, voxels } = stack;
    const nifti = NVImage.createNiftiArray(size, spacing, affine, FLOAT32, voxels);
    return await NVImage.loadFromFile({ file: new File([nifti as BlobPart], "scan.nii") });
  } catch {
    // Whatever it is that cannot be read here, the server could: its mask is shown alone.
    return null;
  }
}

/** Whether two images have the same corners, within a tenth of a voxel: else one would lie wrong on the other. */
function sameGrid(one: NVImage, other: NVImage): boolean {
  const [first, second] = [corners(one), corners(other)];
  const voxel_mm = Math.min(...(other.pixDimsRAS ?? [0, 1, 1, 1]).slice(1, 4));
  return first.every((corner, at) => distance(corner, second[at]!) < voxel_mm / 10);
}

function corners(image: NVImage): number[][] {
  const [, x = 1, y = 1, z = 1] = image.dimsRAS ?? [];
  const ends = [0, 1, 2, 3, 4, 5, 6, 7].map((bits) => [bits & 1 && x - 1, bits & 2 && y - 1, bits & 4 && z - 1]);
  return ends.map((end) => [...image.vox2mm(end, image.matRAS!)]);
}

function distance(one: number[], other: number[]): number {
  return Math.hypot(...one.map((at, axis) => at - other[axis]!));
}

/** The voxel of a label, in RAS order, that lies nearest to where all of them lie on average. */
function middle(mask: NVImage, value: number): number[] | null {
  const img = mask.img2RAS();
  const [, width = 1, height = 1] = mask.dimsRAS ?? [];
  const place = (index: number) => [
    index % width,
    Math.floor(index / width) % height,
    Math.floor(index / (width * height)),
  ];
  const sum = [0, 0, 0];
  let count = 0;
  for (let index = img.indexOf(value); index >= 0; index = img.indexOf(value, index + 1)) {
    place(index).forEach((at, axis) => (sum[axis]! += at));
    count += 1;
  }
  if (!count) return null;
  const mean = sum.map((total) => total / count);
  let best: number[] | null = null;
  let nearest = Infinity;
  for (let index = img.indexOf(value); index >= 0; index = img.indexOf(value, index + 1)) {
    const apart = distance(place(index), mean);
    if (apart < nearest) [best, nearest] = [place(index), apart];
  }
  return best;
}
