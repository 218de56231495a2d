/* A zip of one DICOM series as voxels with their place, as long as it is plain: an image a file, not
   compressed, evenly spaced. Of anything else there is none here: the server reads more kinds. */

import { unzipSync } from "fflate";

/** Voxels in the order of NIfTI, and the way from their indices to millimetres (RAS+), row by row. */
export interface Stack {
  size: [number, number, number];
  spacing: [number, number, number];
  affine: number[];
  voxels: Float32Array;
}

interface Slice {
  rows: number;
  columns: number;
  bits: number;
  signed: boolean;
  spacing: number[];
  orientation: number[];
  position: number[];
  slope: number;
  intercept: number;
  pixels: DataView;
}

const IMPLICIT = "1.2.840.10008.1.2";
const EXPLICIT = "1.2.840.10008.1.2.1";
const LONG = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]);
const UNKNOWN_LENGTH = 0xffffffff;
const PIXELS = 0x7fe00010;
const ITEM = 0xfffee000;
const ITEM_END = 0xfffee00d;
const SEQUENCE_END = 0xfffee0dd;

/** Of a step between two slices, how far one of them may lie beside its place. */
const UNEVEN = 0.01;

interface Element {
  tag: number;
  start: number;
  length: number;
}

/** The series in a zip, or null if it is not plain. */
export async function stackOf(zip: Blob): Promise<Stack | null> {
  const files = Object.values(unzipSync(new Uint8Array(await zip.arrayBuffer())));
  const slices = files.filter(isDicom).map(sliceOf);
  return slices.length > 1 && slices.every((one) => one !== null) ? stacked(slices) : null;
}

function isDicom(data: Uint8Array): boolean {
  return text(viewOf(data), 128, 4) === "DICM";
}

function viewOf(data: Uint8Array): DataView {
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}

function text(view: DataView, start: number, length: number): string {
  if (start + length > view.byteLength) return "";
  const codes = new Uint8Array(view.buffer, view.byteOffset + start, length);
  return String.fromCharCode(...codes).replace(/[\0 ]+$/, "");
}

// --- one file ------------------------------------------------------------------------------

function sliceOf(data: Uint8Array): Slice | null {
  const view = viewOf(data);
  const found = new Map<number, Element>();
  let [explicit, heading] = [true, true];
  for (let at = 132; at + 8 <= view.byteLength; ) {
    if (heading && view.getUint16(at, true) !== 2) {
      heading = false;
      const syntax = read(0x00020010)[0];
      if (syntax !== IMPLICIT && syntax !== EXPLICIT) return null;
      explicit = syntax === EXPLICIT;
    }
    const element = elementAt(view, at, explicit);
    found.set(element.tag, element);
    if (element.tag === PIXELS) break;
    at = endOf(view, element, explicit);
  }
  const pixels = found.get(PIXELS);
  if (!pixels || pixels.start + pixels.length > view.byteLength) return null;

  function read(tag: number): string[] {
    const element = found.get(tag);
    return element ? text(view, element.start, element.length).split("\\") : [];
  }
  const numbers = (tag: number) => read(tag).map(Number);
  const short = (tag: number) => view.getUint16(found.get(tag)?.start ?? view.byteLength, true);
  const slice = {
    rows: short(0x00280010),
    columns: short(0x00280011),
    bits: short(0x00280100),
    signed: short(0x00280103) === 1,
    spacing: numbers(0x00280030),
    orientation: numbers(0x00200037),
    position: numbers(0x00200032),
    slope: numbers(0x00281053)[0] ?? 1,
    intercept: numbers(0x00281052)[0] ?? 0,
    pixels: new DataView(view.buffer, view.byteOffset + pixels.start, pixels.length),
  };
  return isPlain(slice, short(0x00280002)) ? slice : null;
}

function isPlain(one: Slice, samples: number): boolean {
  const told = [...one.spacing, ...one.orientation, ...one.position, one.slope, one.intercept];
  const lengths = [one.spacing.length, one.orientation.length, one.position.length];
  const bytes = (one.rows * one.columns * one.bits) / 8;
  return (
    samples === 1 &&
    (one.bits === 8 || one.bits === 16) &&
    one.pixels.byteLength >= bytes &&
    one.pixels.byteLength <= bytes + 1 &&
    String(lengths) === "2,6,3" &&
    told.every(Number.isFinite)
  );
}

function elementAt(view: DataView, at: number, explicit: boolean): Element {
  const tag = view.getUint16(at, true) * 0x10000 + view.getUint16(at + 2, true);
  if (!explicit || (tag >= ITEM && tag <= SEQUENCE_END)) {
    return { tag, start: at + 8, length: view.getUint32(at + 4, true) };
  }
  if (LONG.has(text(view, at + 4, 2))) return { tag, start: at + 12, length: view.getUint32(at + 8, true) };
  return { tag, start: at + 8, length: view.getUint16(at + 6, true) };
}

/** Where the next element begins; sequences need not say how long they are. */
function endOf(view: DataView, { tag, start, length }: Element, explicit: boolean): number {
  if (length !== UNKNOWN_LENGTH) return start + length;
  const last = tag === ITEM ? ITEM_END : SEQUENCE_END;
  for (let at = start; at + 8 <= view.byteLength; ) {
    const inner = elementAt(view, at, explicit);
    if (inner.tag === last) return inner.start;
    at = endOf(view, inner, explicit);
  }
  return view.byteLength;
}

// --- all of them ---------------------------------------------------------------------------

function stacked(slices: Slice[]): Stack | null {
  const [row, column] = [slices[0]!.orientation.slice(0, 3), slices[0]!.orientation.slice(3)];
  const normal = [0, 1, 2].map(
    (axis) => row[(axis + 1) % 3]! * column[(axis + 2) % 3]! - row[(axis + 2) % 3]! * column[(axis + 1) % 3]!,
  );
  const along = (one: Slice) => one.position.reduce((sum, at, axis) => sum + at * normal[axis]!, 0);
  slices.sort((one, other) => along(one) - along(other));
  const [first, last] = [slices[0]!, slices.at(-1)!];
  const step = last.position.map((at, axis) => (at - first.position[axis]!) / (slices.length - 1));
  if (!slices.every((one, index) => fits(one, first, step, index))) return null;

  const [between_rows, between_columns] = first.spacing as [number, number];
  const ways = [row.map((way) => way * between_columns), column.map((way) => way * between_rows), step];
  const affine = [0, 1, 2].flatMap((axis) => {
    const sign = axis < 2 ? -1 : 1; // DICOM counts to the left and to the back, NIfTI to the right and to the front
    return [...ways.map((way) => sign * way[axis]!), sign * first.position[axis]!];
  });
  return {
    size: [first.columns, first.rows, slices.length],
    spacing: [between_columns, between_rows, Math.hypot(...step)],
    affine: [...affine, 0, 0, 0, 1],
    voxels: voxelsOf(slices),
  };
}

function fits(one: Slice, first: Slice, step: number[], index: number): boolean {
  const alike = (["rows", "columns", "spacing", "orientation"] as const).every(
    (what) => String(one[what]) === String(first[what]),
  );
  const beside = one.position.map((at, axis) => at - first.position[axis]! - index * step[axis]!);
  return alike && Math.hypot(...beside) < UNEVEN * Math.hypot(...step);
}

function voxelsOf(slices: Slice[]): Float32Array {
  const size = slices[0]!.rows * slices[0]!.columns;
  const voxels = new Float32Array(size * slices.length);
  slices.forEach(({ bits, signed, slope, intercept, pixels }, index) => {
    const one = reader(pixels, bits, signed);
    for (let at = 0; at < size; at++) voxels[index * size + at] = one(at) * slope + intercept;
  });
  return voxels;
}

function reader(pixels: DataView, bits: number, signed: boolean): (at: number) => number {
  if (bits === 8) return signed ? (at) => pixels.getInt8(at) : (at) => pixels.getUint8(at);
  return signed ? (at) => pixels.getInt16(2 * at, true) : (at) => pixels.getUint16(2 * at, true);
}
