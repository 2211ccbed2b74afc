import type pg from 'pg'

import { print, printRates, rate, startWorker } from './bench.ts'
import type { Bench } from './bench.ts'

const connections = 16
const post = 1

interface Variant {
  name: string
  table: string
  /** One statement, or the statements of a transaction. */
  like: string | string[]
  worker?: true
}

const insert = (table: string) => `insert into ${table} (post_id, user_id) values ($1, nextval('users'))`

const variants: Variant[] = [
  { name: 'no trigger', table: 'bare', like: insert('bare') },
  { name: 'a trigger that does nothing', table: 'noop', like: insert('noop') },
  { name: 'pgtally', table: 'tallied', like: insert('tallied') },
  { name: 'pgtally, with its worker on the same cores', table: 'tallied', like: insert('tallied'), worker: true },
  {
    name: 'UPDATE in the same statement',
    table: 'synchronous',
    like: `with liked as (${insert('synchronous')} returning post_id) update posts set like_count = like_count + 1 from liked where id = post_id`,
  },
  {
    name: 'UPDATE in the same transaction',
    table: 'synchronous',
    like: [insert('synchronous'), 'update posts set like_count = like_count + 1 where id = $1'],
  },
]

/** Single-row likes on one hot post. */
export async function benchWrite(bench: Bench): Promise<void> {
  const { pool, tally } = bench
  await pool.query(`
    create table posts (id bigint primary key, like_count bigint not null default 0, like_count_fk bigint not null default 0) with (fillfactor = 50);
    insert into posts (id) select generate_series(1, 1000);
    create sequence users cache 100;
    create function do_nothing() returns trigger language plpgsql as 'begin return null; end';`)
  for (const suffix of ['', '_fk']) {
    const reference = suffix === '' ? '' : 'references posts on delete cascade'
    for (const table of new Set(variants.map((variant) => variant.table))) {
      await pool.query(`
        create table ${table}${suffix} (
          post_id bigint not null ${reference}, user_id bigint not null, created_at timestamptz not null default now(), primary key (post_id, user_id))`)
    }
    await pool.query(`
      create trigger do_nothing after insert on noop${suffix} referencing new table as new_rows for each statement execute function do_nothing()`)
    await tally.createCounter(`likes${suffix}`, {
      source: { table: `tallied${suffix}`, key: 'post_id' },
      target: { table: 'posts', key: 'id', column: `like_count${suffix}` },
    })
  }
  await compare(bench, '')
  await compare(bench, '_fk')
}

async function compare(bench: Bench, suffix: string): Promise<void> {
  const { pool, tally } = bench
  const title = `Likes per second on one post, ${connections} connections, ${suffix === '' ? 'no foreign key' : 'with a foreign key to posts'}`
  const rates = new Map<string, number[]>(variants.map(({ name }) => [name, []]))
  for (let repetition = 1; repetition <= bench.repetitions; repetition++) {
    for (const { name, table, like, worker } of variants) {
      await pool.query(`truncate ${table}${suffix}; checkpoint`)
      await tally.drain()
      const act = liking([like].flat().map((text) => text.replaceAll(` ${table} `, ` ${table}${suffix} `)))
      await using running = worker ? await startWorker(bench) : undefined
      const perSecond = await rate(bench, connections, act)
      if (running !== undefined && running.exitCode !== null) throw new Error('The worker ended before its time')
      rates.get(name)?.push(perSecond)
      print(`  ${repetition}/${bench.repetitions} ${name}: ${Math.round(perSecond)}/s`)
    }
  }
  printRates(title, 'likes/s', rates)
}

function liking(statements: string[]): (client: pg.Client) => Promise<void> {
  const [single, ...others] = statements
  return async (client) => {
    if (others.length === 0) {
      await client.query(single ?? '', [post])
      return
    }
    await client.query('begin')
    for (const statement of statements) await client.query(statement, [post])
    await client.query('commit')
  }
}
