import { readFile } from 'node:fs/promises'

/** How to write documents so that every block is run; errors end with it. */
export const howTo = `
Every fenced block of README.md and docs/ is run, in order, against a database for each document (tables posts, likes and notifications, pgtally installed, the counters
post_likes and page_views; for TypeScript pool, client, tally, logger and pgtally's exports are there). Mend the block, or put a comment right above its fence:
  <!-- setup sql                 what readers need not see, run just before (also: setup ts, which becomes part of the block; setup sh)
  alter table …
  -->
  <!-- check: select …           run after it; must be true -->
  <!-- continues -->             TypeScript that goes on from the block above it, in one module
  <!-- types only: reason -->    TypeScript that is checked and not run
  <!-- not run: reason -->       neither
  <!-- empty database -->        at the top of a document: no tables, and pgtally not installed
Languages: ts, sql, sh, console ("$ command" and its output, in which figures may differ), json and yaml (which are parsed). Others need "not run".`

type Language = 'ts' | 'sql' | 'sh' | 'console' | 'json' | 'yaml'

export interface Block {
  /** `docs/sql.md:12`, where its fence begins. */
  at: string
  line: number
  language: Language
  text: string
  /** Run before it. */
  setup: { language: string; text: string }[]
  /** SQL for what must be true after it. */
  checks: string[]
  continues: boolean
  /** Why it is not run. */
  exception?: { kind: 'types only' | 'not run'; reason: string }
}

export interface Document {
  path: string
  emptyDatabase: boolean
  /** By `npm run docs`. */
  generated: boolean
  /** What is wrong with its blocks themselves. */
  problems: string[]
  blocks: Block[]
}

const languages: readonly string[] = ['ts', 'sql', 'sh', 'console', 'json', 'yaml'] satisfies Language[]
const fence = /^( *)(```+)(.*)$/

export async function readDocument(path: string): Promise<Document> {
  const lines = (await readFile(path, 'utf8')).split('\n')
  const blocks: Block[] = []
  const problems: string[] = []
  let emptyDatabase = false
  // The comments since the last line of other text.
  let comments: string[] = []
  for (let index = 0; index < lines.length; index++) {
    const line = lines[index] ?? ''
    if (line.trimStart().startsWith('<!--')) {
      const start = index
      while (!(lines[index] ?? '').includes('-->') && index < lines.length) index++
      const comment = lines.slice(start, index + 1).map((each) => each.slice(Math.min(indentOf(line), indentOf(each)))).join('\n')
      comments.push(comment.replace(/^<!--\s*/, '').replace(/\s*-->.*$/s, ''))
      if (comments.at(-1) === 'empty database') emptyDatabase = true
      continue
    }
    const [, indent = '', ticks, info = ''] = fence.exec(line) ?? []
    if (ticks === undefined) {
      if (line.trim() !== '') comments = []
      continue
    }
    const end = lines.findIndex((each, at) => at > index && each.trim() === ticks)
    if (end < 0) {
      problems.push(`${path}:${index + 1}: the block has no end.`)
      break
    }
    const text = lines.slice(index + 1, end).map((each) => each.slice(Math.min(indent.length, indentOf(each)))).join('\n')
    const block = createBlock(`${path}:${index + 1}`, index + 1, info.trim(), text, comments, problems)
    if (block !== undefined) blocks.push(block)
    comments = []
    index = end
  }
  return { path, emptyDatabase, generated: lines[0]?.includes('Written by `npm run docs`') ?? false, problems, blocks }
}

/** Undefined for one with a problem, which is added to `problems`. */
function createBlock(at: string, line: number, language: string, text: string, comments: readonly string[], problems: string[]): Block | undefined {
  const block: Block = { at, line, language: language as Language, text, setup: [], checks: [], continues: false }
  const before = problems.length
  for (const comment of comments) {
    const [, setupLanguage, setup] = /^setup (ts|sql|sh)\n(.*)$/s.exec(comment) ?? []
    const [, kind, reason] = /^(types only|not run)(?:: (.+))?$/s.exec(comment) ?? []
    if (setupLanguage === 'ts' && language !== 'ts') problems.push(`${at}: "setup ts" is for TypeScript, of which it becomes part.`)
    else if (setupLanguage !== undefined) block.setup.push({ language: setupLanguage, text: setup ?? '' })
    else if (comment.startsWith('check: ')) block.checks.push(comment.slice(7))
    else if (comment === 'continues') block.continues = true
    else if (kind !== undefined && reason !== undefined) block.exception = { kind: kind as 'not run', reason }
    else if (kind !== undefined) problems.push(`${at}: "${kind}" needs a reason: <!-- ${kind}: reason -->`)
    else if (/^(setup|check|continue|not|types)\b/.test(comment)) problems.push(`${at}: the comment "${comment}" above it is not understood.`)
  }
  if (block.exception?.kind !== 'not run' && !languages.includes(language)) {
    problems.push(`${at}: a block ${language === '' ? 'without a language' : `in "${language}"`} cannot be run.`)
  }
  if (language !== 'ts' && (block.continues || block.exception?.kind === 'types only')) problems.push(`${at}: "continues" and "types only" are for TypeScript.`)
  return problems.length === before ? block : undefined
}

function indentOf(line: string): number {
  return line.length - line.trimStart().length
}

/** The statements of a script, without the semicolons. Knows quotes, dollar quotes and comments. */
export function splitStatements(script: string): string[] {
  const token = /--[^\n]*|\/\*.*?\*\/|'(?:[^']|'')*'|"[^"]*"|(\$\w*\$).*?\1|;/gs
  const statements: string[] = []
  let start = 0
  for (const match of script.matchAll(token)) {
    if (match[0] !== ';') continue
    statements.push(script.slice(start, match.index))
    start = match.index + 1
  }
  return [...statements, script.slice(start)].map((each) => each.trim()).filter((each) => each.replaceAll(/--[^\n]*/g, '').trim() !== '')
}
