/* The colour of a label value: the same in the table and over the slices. */

/** Apart from each other also for those who see red and green alike; lightness varies beside hue. */
const FIRST = [
  [86, 180, 233], [230, 159, 0], [0, 178, 125], [240, 228, 66], [204, 121, 167],
  [213, 94, 0], [64, 118, 220], [167, 214, 118], [160, 120, 230], [240, 150, 140],
] as const;

const GOLDEN_ANGLE = 137.508;

export type Color = readonly [red: number, green: number, blue: number];

export function colorOf(value: number): Color {
  return FIRST[value - 1] ?? spread((value * GOLDEN_ANGLE) % 360, value % 2 ? 0.62 : 0.72);
}

/** A colour of one hue (degrees) and lightness, moderately saturated. */
function spread(hue: number, lightness: number): Color {
  const reach = 0.65 * Math.min(lightness, 1 - lightness);
  const channel = (offset: number) => {
    const turn = (offset + hue / 30) % 12;
    return Math.round(255 * (lightness - reach * Math.max(-1, Math.min(turn - 3, 9 - turn, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}
