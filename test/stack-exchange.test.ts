import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

import { afterAll, beforeAll, describe, expect, test } from 'vitest'

import { openDump } from '../examples/stack-exchange/dump.ts'
import { createRandom } from '../examples/stack-exchange/plan.ts'
import { replay } from '../examples/stack-exchange/replay.ts'
import type { ReplayOptions, ReplayResult } from '../examples/stack-exchange/replay.ts'
import { createTestDatabase, type TestDatabase } from './support/database.ts'

const root = path.join(import.meta.dirname, '..')
const realSite = path.join(root, '../shared/data/stack-exchange/french.meta')

let db: TestDatabase
let temporary: string

beforeAll(async () => {
  db = await createTestDatabase()
  temporary = await mkdtemp(path.join(tmpdir(), 'pgtally-stack-exchange-'))
})

afterAll(async () => {
  await db?.drop()
  if (temporary !== undefined) await rm(temporary, { recursive: true })
})

/** Writes a dump as the real ones are: with a byte order mark, an XML declaration and Windows line ends. */
async function writeDump(name: string, posts: readonly string[], votes: readonly string[]): Promise<string> {
  const directory = path.join(temporary, name)
  await mkdir(directory)
  const file = (element: string, rows: readonly string[]) =>
    `\u{feff}<?xml version="1.0" encoding="utf-8"?>\r\n<${element}>\r\n${rows.map((row) => `  <row ${row} />\r\n`).join('')}</${element}>`
  await writeFile(path.join(directory, 'Posts.xml'), file('posts', posts))
  await writeFile(path.join(directory, 'Votes.xml'), file('votes', votes))
  return directory
}

interface Site {
  directory: string
  posts: number
  votes: number
  votesForMissingPosts: number
  missingPosts: number
  /** How many there are of posts and of tags, by hour, day and month. */
  buckets: number[]
}

const tagsOf = (post: number) => ['c++', `t-${post % 5}`, `été.${post % 7}`].slice(0, post % 4)

const contradicted = 7
const withoutScore = 11

/** A site with all oddities that are known of real ones. */
async function writeOddSite(name: string): Promise<Site> {
  const random = createRandom(42, 0)
  const upTo = (limit: number) => 1 + Math.floor(random() * limit)
  const posts = 60
  const scores = new Map<number, number>(Array.from({ length: posts }, (_, index) => [index + 1, 0]))
  const missing = new Set<number>()
  const buckets = Array.from({ length: 6 }, () => new Set<string>())
  let votesForMissingPosts = 0
  const votes = Array.from({ length: 2500 }, (_, index) => {
    // Most for a few posts; beyond the last are the deleted ones.
    const post = Math.ceil(random() ** 2 * (posts + 6))
    const type = random() < 0.8 ? 2 : upTo(16)
    const score = scores.get(post)
    const change = type === 2 ? 1 : type === 3 ? -1 : 0
    const at = new Date(Date.UTC(2011, 6 + (index % 3), 10 + (index % 20), index % 24, index % 60, 59, 100 + (index % 900)))
    if (index % 100 > 0 && change !== 0) {
      for (const [group, keys] of [[post], score === undefined ? [] : tagsOf(post)].entries()) {
        for (const [width, unit] of [at.getTime() / 3_600_000, at.getTime() / 86_400_000, at.getUTCMonth()].entries()) {
          for (const key of keys) buckets[3 * group + width]?.add(`${key} ${Math.floor(unit)}`)
        }
      }
    }
    if (score !== undefined) scores.set(post, score + change)
    else if (change !== 0) {
      missing.add(post)
      votesForMissingPosts++
    }
    const bounty = type === 8 ? 'UserId="-1" BountyAmount="50" ' : ''
    const date = index % 100 === 0 ? '' : ` CreationDate="${at.toISOString().slice(0, -1)}"`
    return `Id="${3 * index + 1}" PostId="${post}" VoteTypeId="${type}" ${bounty}${date}`
  })
  // Long enough to be read in several pieces, with what XML does not allow and the dumps have.
  const body = '&lt;p&gt;\u{1f600}é&#xA;&#x1F;&#xFFFF;&#0;&lt;/p&gt;'.repeat(3000)
  const rows = [...scores].map(([id, score]) => {
    // As the dumps had it until 2024, and as they have it since; answers have none.
    const names = tagsOf(id)
    const tags = id % 2 === 0 ? `Tags="${names.map((tag) => `&lt;${tag}&gt;`).join('')}"` : names.length > 0 ? `Tags="|${names.join('|')}|"` : ''
    const said = id === withoutScore ? '' : `Score="${id === contradicted ? score + 5 : score}"`
    return `Id="${id}" PostTypeId="${upTo(8)}" CreationDate="2011-08-17T20:18:56.507" ${said} ${tags} Title="a &amp; b" ${id % 20 === 0 ? `Body="${body}"` : ''}`
  })
  return { directory: await writeDump(name, rows, votes), posts, votes: votes.length, votesForMissingPosts, missingPosts: missing.size, buckets: buckets.map(({ size }) => size) }
}

const replayHere = (directory: string, options: Partial<ReplayOptions> = {}) => replay({ directory, databaseUrl: db.connectionString, connections: 8, seed: 1, ...options })

/** Of posts and of tags: hours, days, months. */
const comparedBuckets = ({ buckets }: ReplayResult) => buckets.map(({ compared }) => compared)

async function schemas(): Promise<string[]> {
  const { rows } = await db.pool.query<{ nspname: string }>(`select nspname from pg_namespace where nspname ~ '^(stack_exchange|pgtally)_' order by nspname desc`)
  return rows.map(({ nspname }) => nspname)
}

describe('a site with every oddity', () => {
  let site: Site

  beforeAll(async () => {
    site = await writeOddSite('odd')
  })

  test('counters equal the votes, the dump where it agrees with itself, and what is dropped is counted', async () => {
    const result = await replayHere(site.directory)
    const { posts, votes, votesForMissingPosts, missingPosts } = site
    expect(result.problems).toEqual([])
    expect(result).toMatchObject({ posts, votes, votesForMissingPosts, missingPosts, wrongCounters: 0, scores: posts - 1, matching: posts - 2, contradictions: 1 })
    const [difference, ...others] = result.examples
    expect(others).toEqual([])
    expect(difference).toEqual({ id: contradicted, counter: difference?.votes, votes: difference?.votes, score: (difference?.votes ?? 0) + 5 })
    expect(missingPosts).toBeGreaterThan(1)
    expect(result.droppedEvents).toBeGreaterThan(missingPosts)
    expect(result.expected.withdrawn).toBeGreaterThan(50)
    expect(result.batches).toBeGreaterThan(1)
    expect(result.greatestLagSeconds).toBeLessThan(30)
    expect(comparedBuckets(result)).toEqual(site.buckets)
    expect(await schemas()).toEqual([])
  })

  test('the seed decides what is done, however many connections do it', async () => {
    const results = [
      await replayHere(site.directory, { connections: 2, seed: 5 }),
      await replayHere(site.directory, { connections: 9, seed: 5 }),
      await replayHere(site.directory, { seed: 6 }),
    ]
    const [one, same, other] = results.map(({ problems, expected, appliedEvents, droppedEvents }) => ({ problems, expected, appliedEvents, droppedEvents }))
    expect(one?.problems).toEqual([])
    expect(same).toEqual(one)
    expect(other?.expected.transactions).not.toBe(one?.expected.transactions)
  })

  /** Does something else in the database while votes are being cast. */
  async function replayTampered(tamper: (tables: string, tally: string) => string) {
    let tampering: Promise<unknown> | undefined
    const onProgress: ReplayOptions['onProgress'] = ({ phase }) => {
      if (phase === 'casting votes') tampering ??= schemas().then(([tables = '', tally = '']) => db.pool.query(tamper(tables, tally)))
    }
    const result = await replayHere(site.directory, { onProgress })
    await tampering
    return result
  }

  test('a counter that is off by one is found', async () => {
    const { problems, examples } = await replayTampered((tables) => `update ${tables}.posts set score = score + 1 where id = 3`)
    expect(problems).toEqual([`Of ${site.posts} counters, 1 do not equal the votes cast.`])
    expect(examples[0]).toMatchObject({ id: 3, counter: (examples[0]?.votes ?? 0) + 1 })
  })

  test('so are events too many, even where they cancel out on a post that does not exist', async () => {
    const { problems, expected } = await replayTampered((tables) => `insert into ${tables}.votes values (1000000, 1000000, 2); delete from ${tables}.votes where id = 1000000`)
    expect(problems).toEqual([
      `${expected.events} events were emitted and ${expected.events + 2} were applied.`,
      `${expected.droppedEvents} events were for missing posts and ${expected.droppedEvents + 2} were counted as dropped.`,
    ])
  })

  test('and a single bucket, or a tag, that the dump has not', async () => {
    const { problems } = await replayTampered(
      (tables, tally) => `
        insert into ${tally}.bucket_1_2 as b values ('2011-08-11 00:00Z', 5, 0, 3) on conflict (start, key, slot) do update set count = b.count + 5;
        insert into ${tables}.tag_votes values (-1, 'made up', 3, '2011-08-31 23:59:59.9Z')`,
    )
    expect(problems).toEqual([
      expect.stringMatching(/^Of \d+ buckets of 1 day of post_score, 1 do not equal the sum of the votes in Votes\.xml: 3 from 2011-08-11T00:00Z on has -?\d+ instead of -?\d+\.$/),
      expect.stringMatching(/^Of \d+ buckets of 1 hour of tag_score, 1 do not .*: made up from 2011-08-31T23:00Z on has -1 instead of 0\.$/),
      expect.stringMatching(/^Of \d+ buckets of 1 day of tag_score, 1 do not .*: made up from 2011-08-31T00:00Z on has -1 instead of 0\.$/),
      expect.stringMatching(/^Of \d+ buckets of 1 month of tag_score, 1 do not .*: made up from 2011-08-01T00:00Z on has -1 instead of 0\.$/),
    ])
  })

  test('an interrupted replay leaves nothing behind', async () => {
    const controller = new AbortController()
    const onProgress: ReplayOptions['onProgress'] = ({ phase }) => {
      if (phase === 'casting votes') setTimeout(() => controller.abort(new Error('enough')), 20)
    }
    await expect(replayHere(site.directory, { signal: controller.signal, onProgress })).rejects.toThrow('enough')
    await expect(replayHere(site.directory, { signal: AbortSignal.abort(new Error('before it began')) })).rejects.toThrow('before it began')
    expect(await schemas()).toEqual([])
  })

  test('the demo command', async () => {
    const { code, output } = await runDemo('--stack-exchange', site.directory, '--seed', '3', '--connections', '4', '--database-url', db.connectionString)
    expect(output).toContain('with the seed 3')
    expect(output).toContain(`Exact: all ${site.posts} counters equal the votes cast, and all `)
    expect(output).toContain(`${site.posts - 2} of ${site.posts} counters match the Score in the dump.`)
    expect(output).toContain('The dump contradicts itself for 1 post:')
    expect(output).toContain(`${site.votesForMissingPosts} votes for ${site.missingPosts} posts that are not in Posts.xml`)
    expect(code).toBe(0)
  })
})

test('an empty site', async () => {
  const result = await replayHere(await writeDump('empty', [], []))
  expect(result).toMatchObject({ problems: [], posts: 0, votes: 0, appliedEvents: 0 })
})

describe('a dump that cannot be read is refused with file and line', () => {
  const post = 'Id="1" Score="0"'
  const vote = 'Id="1" PostId="1" VoteTypeId="2"'
  test.each([
    ['no number', [post], [vote, 'Id="2" PostId="x" VoteTypeId="2"'], 'Votes.xml:4: PostId is "x", and not a whole number'],
    ['a number too great', ['Id="1" Score="2147483648"'], [vote], 'Posts.xml:3: Score is "2147483648"'],
    ['an attribute missing', [post], ['Id="1" PostId="1"'], 'Votes.xml:3: the row has no VoteTypeId.'],
    ['no date', [post, 'Id="2" CreationDate="2011-02-30T00:00:00.000"'], [vote], 'Posts.xml:4: CreationDate is "2011-02-30T00:00:00.000"'],
    ['no tags', [post, 'Id="2" Tags="&lt;a&gt;b"'], [vote], 'Posts.xml:4: Tags is "<a>b", and not tags like <one><two> or |one|two|.'],
    ['no XML', [`${post} Score=5`], [vote], 'Posts.xml:3:'],
    ['a post twice', [post, post], [vote], 'Posts.xml has two posts with the same Id: Key (id)=(1) already exists.'],
    ['a vote twice', [post], [vote, vote], 'Votes.xml:3-4: a vote there has the Id of another: Key (id)=(1) already exists.'],
  ])('%s', async (name, posts, votes, message) => {
    await expect(replayHere(await writeDump(name, posts, votes))).rejects.toThrow(message)
    expect(await schemas()).toEqual([])
  })

  test('a file that was cut short', async () => {
    const directory = await writeDump('cut short', [post], [vote])
    await writeFile(path.join(directory, 'Votes.xml'), `<votes>\n<row ${vote} />\n<row Id="2" Pos`)
    await expect(replayHere(directory)).rejects.toThrow(/Votes\.xml:3:\d+: .* Is this the whole file/)
  })

  test('a file that is not there', async () => {
    await expect(openDump(path.join(temporary, 'nowhere'))).rejects.toThrow('nowhere/Posts.xml. Name the directory')
    expect(await runDemo('--stack-exchange', path.join(temporary, 'nowhere'))).toMatchObject({ code: 1 })
    expect(await runDemo('--stack-exchange')).toMatchObject({ code: 2 })
  })
})

test('a real site: French Language Meta', async (context) => {
  if (!existsSync(realSite)) context.skip('needs the dump of a site at ../shared/data/stack-exchange/french.meta')
  const result = await replayHere(realSite)
  expect(result.problems).toEqual([])
  expect(result).toMatchObject({ posts: 781, votes: 4349, wrongCounters: 0, matching: 781, contradictions: 0, votesForMissingPosts: 73, missingPosts: 29 })
  expect(result.droppedEvents).toBe(result.expected.droppedEvents)
  expect(result.expected.withdrawn).toBeGreaterThan(100)
  // Its votes have a date, but no time of the day.
  expect(comparedBuckets(result)).toEqual([3112, 3112, 2168, 2387, 2387, 1020])
})

function runDemo(...given: string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = execFile(process.execPath, ['examples/demo.ts', ...given], { cwd: root, env: { ...process.env, DATABASE_URL: '' } }, (_, stdout, stderr) => {
      resolve({ code: child.exitCode ?? -1, output: stdout + stderr })
    })
  })
}
