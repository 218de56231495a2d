/* What the server is asked, and what it says. Addresses are relative: the page may lie under any prefix. */

/** One structure in an answer. */
export interface Finding {
  structure: string;
  value: number;
  voxels: number;
  volume_ml: number;
  components: number;
  confidence: number | null;
  needs_review: boolean;
  reasons: string[];
}

/** What an answer tells beside the mask. */
export interface Report {
  model: { name: string; version: string };
  structures: Finding[];
  seconds: Record<string, number>;
}

/** A model that is served. */
export interface Model {
  name: string;
  default: boolean;
  /** Of a model that nobody asked for yet, what it finds is not known. */
  structures?: { value: number; structure: string }[];
}

/** How far a job is. */
export interface Progress {
  state: "sending" | "queued" | "running";
  share: number;
}

interface Job {
  id: string;
  state: "queued" | "running" | "done" | "failed";
  share?: number;
  problem?: Told | null;
}

interface Told {
  title?: string;
  detail?: string;
  status?: number;
  request_id?: string;
}

/** Something that went wrong, in the server's own words where it has any. */
export class Problem extends Error {
  override readonly name = "Problem";
  constructor(
    readonly title: string,
    readonly detail: string,
    readonly status = 0,
    readonly request = "",
  ) {
    super(detail);
  }
}

/** Someone else has to be waited for, or nobody answered: the same can work later. */
const LATER = [0, 408, 429, 502, 503, 504];

export function mayWorkLater(error: unknown): boolean {
  return error instanceof Problem && LATER.includes(error.status);
}

const TOKEN = "tutelage.token";
const FIRST_MS = 250;
const LONGEST_MS = 2000;
const PATIENCE_MS = 30_000;

export function token(): string {
  return sessionStorage.getItem(TOKEN) ?? "";
}

export function keepToken(value: string): void {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/** The models that are served. */
export async function models(): Promise<Model[]> {
  const answer = await ask("v1/models", {});
  return ((await answer.json()) as { models: Model[] }).models;
}

/** Send a scan; returns the id of its job. `told` hears which share has left. */
export function submit(
  file: File,
  model: string,
  told: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<string> {
  const query = new URLSearchParams({ name: file.name });
  if (model) query.set("model", model);
  return new Promise((resolve, reject) => {
    // Only this old way of asking tells how much has left already.
    const request = new XMLHttpRequest();
    request.open("POST", `v1/jobs?${query}`);
    for (const [name, value] of Object.entries(authority())) request.setRequestHeader(name, value);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) =>
      told({ state: "sending", share: event.lengthComputable ? event.loaded / event.total : 0 });
    request.upload.onload = () => told({ state: "queued", share: 0 });
    request.onload = () => {
      const answer = parsed(request.responseText);
      if (request.status === 202) resolve((answer as Job).id);
      else reject(problemOf(request.status, answer, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(unreachable());
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** Wait until a job is done; a server that does not answer for a moment is asked again. */
export async function finished(
  id: string,
  told: (progress: Progress) => void,
  signal: AbortSignal,
): Promise<void> {
  let pause = FIRST_MS;
  let heard = Date.now();
  for (;;) {
    const job = await asked(id, signal).catch((error: unknown) => {
      if (!mayWorkLater(error) || Date.now() - heard > PATIENCE_MS) throw error;
      return null;
    });
    if (job) heard = Date.now();
    if (job?.state === "done") return;
    if (job?.state === "failed") throw problemOf(job.problem?.status ?? 500, job.problem, null);
    if (job) told({ state: job.state, share: job.share ?? 0 });
    await rest(pause, signal);
    pause = Math.min(pause * 1.3, LONGEST_MS);
  }
}

async function asked(id: string, signal: AbortSignal): Promise<Job> {
  return (await ask(`v1/jobs/${id}`, { signal })).json() as Promise<Job>;
}

/** The result of a job as JSON. */
export async function report(id: string, signal: AbortSignal): Promise<Report> {
  const answer = await ask(`v1/jobs/${id}/result`, { signal, headers: { Accept: "application/json" } });
  return (await answer.json()) as Report;
}

/** The result of a job as a file of a media type. */
export async function file(id: string, type: string, signal?: AbortSignal): Promise<Blob> {
  const answer = await ask(`v1/jobs/${id}/result`, { signal: signal ?? null, headers: { Accept: type } });
  return answer.blob();
}

/** Tell the server that nobody waits for a job any more. */
export function forget(id: string): void {
  // The answer changes nothing here: a job that stays is forgotten by itself.
  void fetch(`v1/jobs/${id}`, { method: "DELETE", headers: authority(), keepalive: true }).catch(() => null);
}

async function ask(address: string, options: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(address, { ...options, headers: { ...authority(), ...options.headers } });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw unreachable();
  }
  if (answer.ok) return answer;
  throw problemOf(answer.status, parsed(await answer.text()), answer.headers.get("Retry-After"));
}

function authority(): Record<string, string> {
  return token() ? { Authorization: `Bearer ${token()}` } : {};
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

function problemOf(status: number, answer: unknown, retryAfter: string | null): Problem {
  const told = (typeof answer === "object" && answer !== null ? answer : {}) as Told;
  const wait = retryAfter && /^\d+$/.test(retryAfter) ? ` It asks to wait ${retryAfter} s.` : "";
  const detail = told.detail ?? `The server answers ${status} and says no more.`;
  return new Problem(told.title ?? "The server refuses", detail + wait, status, told.request_id ?? "");
}

function unreachable(): Problem {
  return new Problem("The server does not answer", "Look whether it runs and whether the network is there.");
}

function rest(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", end);
      resolve();
    }, milliseconds);
    signal.addEventListener("abort", end, { once: true });
  });
}
