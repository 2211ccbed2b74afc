import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'

const directory = path.resolve(import.meta.dirname, '../../sql/functions')

/** What is meant to be called from outside, by purpose. All other functions are called by these, or by the library. */
const groups: readonly (readonly [title: string, about: string, names: readonly string[]])[] = [
  ['For the application', 'What an application calls in its own transactions.', [
    'add_event', 'add_events', 'insert_event', 'event_table', 'get_counts', 'get_fresh_counts', 'counter_version', 'get_milestones', 'is_stored',
  ]],
  ['Time buckets, top lists and trends', 'See [trends](trends.md).', ['series', 'top', 'trending', 'spikes', 'bucket_status']],
  ['Counters and queues', 'To define and remove them.', ['create_counter', 'drop_counter', 'create_queue', 'drop_queue', 'reset_keys', 'reset_range']],
  ['Applying', 'What a worker does; `pgtally drain` once.', ['due_counters', 'apply_batch', 'apply_packed', 'apply_carried', 'wait_for_carried', 'rotate', 'expire_buckets', 'sync_triggers']],
  ['Exactness', 'To prove counts, and to correct them.', [
    'audit', 'audit_keys', 'audit_range', 'sample_keys', 'reconcile', 'reconcile_keys', 'begin_reconciliation', 'reconcile_range',
  ]],
  ['Consumers', 'To read the events of a queue. A single process needs the first group of [consumers in SQL](consumers.md#in-sql) only.', [
    'register_consumer', 'unregister_consumer', 'next_batch', 'get_batch_events', 'get_batch_deltas', 'finish_batch',
    'due_batch', 'claim_batch', 'lock_batch', 'renew_claim', 'release_batch', 'fail_event', 'dead_letters', 'replay_dead_letters', 'purge_dead_letters',
    'pause_consumer', 'resume_consumer', 'seek', 'skip',
  ]],
  ['Forwarding', 'See [forwarding](forwarding.md).', ['export_batch', 'receive_batch', 'received_batch', 'accept_batch']],
  ['Administration', 'Where everything stands, what is wrong, and what to do after a restore.', [
    'counter_status', 'counter_problems', 'counter_findings', 'queue_status', 'slot_status', 'slot_waits_for', 'consumer_status', 'consumer_backlog', 'latest_dead_letters', 'audit_status', 'record_audit',
    'carried_locks', 'target_headroom', 'oldest_transaction', 'rebase',
  ]],
  ['Rights', 'See [security](security.md).', ['grant_access', 'revoke_access', 'renew_access', 'missing_rights']],
]

const head = `<!-- Written by \`npm run docs\` from the comments in sql/functions. -->

# SQL reference

The functions that are meant to be called, by purpose, with what their files say. A guide, with examples and the error codes: [sql.md](sql.md). The schema is \`pgtally\`, unless another one
was chosen at install.
`

/** The public functions with their contracts. */
export async function sqlReference(): Promise<Map<string, string>> {
  const contents = groups.map(([title, , names]) => `- [${title}](#${anchor(title)}): ${names.map((name) => `[${name}](#${name})`).join(', ')}`)
  const sections = await Promise.all(
    groups.map(async ([title, about, names]) => `## ${title}\n\n${about}\n\n${(await Promise.all(names.map(describe))).join('\n\n')}`),
  )
  const internal = (await readdir(directory)).map((file) => file.replace('.sql', '')).filter((name) => !groups.some(([, , names]) => names.includes(name)))
  const rest = `## Internal functions\n\nThey may change with every version: ${internal.toSorted().map((name) => `\`${name}\``).join(', ')}.`
  return new Map([['docs/sql-reference.md', `${head}\n${contents.join('\n')}\n\n${sections.join('\n\n')}\n\n${rest}\n`]])
}

async function describe(name: string): Promise<string> {
  const text = await readFile(path.join(directory, `${name}.sql`), 'utf8')
  const lines = text.split('\n')
  const comment = lines.slice(0, lines.findIndex((line) => !line.startsWith('--'))).map((line) => line.slice(3))
  const summary = comment.join('\n').replace(new RegExp(String.raw`^${name}\([^)]*\): `), '')
  return `### ${name}\n\n<!-- not run: a signature -->\n\`\`\`sql\n${signature(name, text)}\n\`\`\`\n\n${markdown(capitalized(summary))}`
}

/** From its name to the end of its result, as it is written in the file. */
function signature(name: string, text: string): string {
  const start = text.search(new RegExp(String.raw`^create (or replace )?(function|procedure) pgtally\.${name}\(`, 'm'))
  const [declaration = ''] = /^.*?(?=\s*(?:\n--.*\n)*\s*\blanguage\b)/s.exec(text.slice(start)) ?? []
  if (start < 0 || declaration === '') throw new Error(`sql/functions/${name}.sql: its declaration is not understood.`)
  return declaration.replace(/^create (or replace )?(function )?/, '').replaceAll(/\n--.*/g, '').trim()
}

/** Asterisks and the like are meant as they are; calls and arguments are code. */
function markdown(text: string): string {
  return text
    .replaceAll(/[*<>|]/g, String.raw`\$&`)
    .replaceAll(/\b[a-z]+(?:_[a-z]+)+(?:\(\))?|\b[a-z]+\(\)/g, '`$&`')
    .replaceAll(/\n{2,}/g, '\n\n')
}

/** Unless it begins with a function's name. */
const capitalized = (text: string) => (/^\w+\(/.test(text) ? text : text.charAt(0).toUpperCase() + text.slice(1))
const anchor = (title: string) => title.toLowerCase().replaceAll(',', '').replaceAll(' ', '-')
