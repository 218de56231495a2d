/* The table of structures: what was found, and what is shown of it. Knows neither server nor pictures. */

import type { Finding } from "./api";
import { colorOf } from "./colors";

export interface Wishes {
  /** Which label values are to be seen now. */
  show: (values: ReadonlySet<number>) => void;
  /** The middle of this one is to be seen. */
  visit: (value: number) => void;
}

const MILLILITERS = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** Fills a table's body; switches in it stand for what is seen. */
export class Structures {
  private switches = new Map<number, HTMLInputElement>();

  constructor(
    private readonly body: HTMLElement,
    private readonly allAtOnce: HTMLButtonElement,
    private readonly wishes: Wishes,
  ) {
    allAtOnce.addEventListener("click", () => {
      const visible = this.shown().size === 0;
      for (const one of this.switches.values()) one.checked = visible;
      this.changed();
    });
  }

  fill(findings: readonly Finding[]): void {
    this.switches.clear();
    this.body.replaceChildren(...findings.flatMap((finding) => this.rows(finding)));
    this.changed();
  }

  shown(): Set<number> {
    return new Set([...this.switches].filter(([, one]) => one.checked).map(([value]) => value));
  }

  private changed(): void {
    const shown = this.shown();
    this.allAtOnce.textContent = shown.size ? "Hide all" : "Show all";
    this.allAtOnce.disabled = !this.switches.size;
    this.wishes.show(shown);
  }

  private rows(finding: Finding): HTMLTableRowElement[] {
    const row = document.createElement("tr");
    row.dataset["structure"] = finding.structure;
    row.classList.toggle("absent", !finding.voxels);
    row.append(this.named(finding));
    for (const text of measures(finding)) {
      const cell = document.createElement("td");
      cell.textContent = text;
      row.append(cell);
    }
    return finding.needs_review ? [row, reasons(finding)] : [row];
  }

  private named(finding: Finding): HTMLTableCellElement {
    const cell = document.createElement("td");
    const line = made("div", "structure");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = Boolean(finding.voxels);
    box.disabled = !finding.voxels;
    box.ariaLabel = `Show ${finding.structure}`;
    box.addEventListener("change", () => this.changed());
    if (finding.voxels) this.switches.set(finding.value, box);
    const swatch = made("span", "swatch");
    swatch.style.backgroundColor = `rgb(${colorOf(finding.value).join(" ")})`;
    const name = document.createElement("button");
    name.type = "button";
    name.textContent = finding.structure;
    name.title = finding.voxels ? "Go to its middle" : "Not found";
    name.disabled = !finding.voxels;
    name.addEventListener("click", () => this.wishes.visit(finding.value));
    line.append(box, swatch, name);
    cell.append(line);
    return cell;
  }
}

function measures(finding: Finding): string[] {
  const confidence = finding.confidence === null ? "–" : finding.confidence.toFixed(2);
  if (!finding.voxels) return ["none", "0", confidence];
  return [MILLILITERS.format(finding.volume_ml), String(finding.components), confidence];
}

function reasons(finding: Finding): HTMLTableRowElement {
  const row = document.createElement("tr");
  row.className = "reasons";
  const cell = row.insertCell();
  cell.colSpan = 4;
  const why = finding.reasons.map((reason) => reason.replaceAll("_", " ")).join("; ");
  cell.textContent = why ? `Needs review: ${why}` : "Needs review";
  return row;
}

function made(tag: string, className: string): HTMLElement {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
