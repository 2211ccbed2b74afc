import { randomBytes } from 'node:crypto'

import type { Pool } from 'pg'

import { PgtallyError } from '../errors.ts'
import { createTally } from '../tally.ts'

/** The post that everyone likes, and the likes it has before a storm: of the users 1 to `likesBefore`. */
export const celebrity = 1
export const likesBefore = 200_000

/** Two schemas of the demo's own, so that it touches nothing that was there. */
export interface Playground {
  /** For posts and likes. */
  schema: string
  /** For pgtally. */
  tallySchema: string
}

/**
 * Creates the schemas, and installs pgtally in its own.
 *
 * @throws PgtallyError INVALID_ARGUMENT when `tallySchema` was given and exists already
 */
export async function createPlayground(pool: Pool, tallySchema?: string): Promise<Playground> {
  const suffix = randomBytes(5).toString('hex')
  const playground = { schema: `pgtally_demo_${suffix}`, tallySchema: tallySchema ?? `pgtally_demo_${suffix}_tally` }
  const tally = createTally({ pool, schema: playground.tallySchema })
  const taken = await pool.query('select from pg_catalog.pg_namespace where nspname = $1', [playground.tallySchema])
  if (taken.rows.length > 0) {
    throw new PgtallyError('INVALID_ARGUMENT', `The schema "${playground.tallySchema}" exists, and the demo drops its schemas at the end. Name a new one, or none.`)
  }
  try {
    await pool.query(`create schema ${playground.schema}`)
    await tally.install()
    return playground
  } catch (error) {
    await dropPlayground(pool, playground)
    throw error
  }
}

/** Drops the schemas with all that is in them. */
export async function dropPlayground(pool: Pool, { schema, tallySchema }: Playground): Promise<void> {
  try {
    await pool.query(`drop schema if exists ${schema} cascade`)
    await pool.query(`drop schema if exists ${tallySchema} cascade`)
  } catch (cause) {
    throw new Error(`The demo could not clean up (${String(cause)}). Run: drop schema if exists ${schema}, ${tallySchema} cascade`, { cause })
  }
}

/**
 * New tables for each way, the same for all: nobody storms over what the one before left behind. Without a foreign key: for
 * that PostgreSQL locks the post's row with every like, which on one post would be the greater part of what all three ways cost.
 */
export async function createTables(pool: Pool, { schema }: Playground): Promise<void> {
  await pool.query(`
    drop table if exists ${schema}.likes, ${schema}.posts;
    create table ${schema}.posts (id bigint primary key, like_count bigint not null default 0);
    create table ${schema}.likes (post_id bigint not null, user_id bigint not null);
    insert into ${schema}.posts (id) values (${celebrity});
    insert into ${schema}.likes select ${celebrity}, user_id from generate_series(1, ${likesBefore}) user_id;
    alter table ${schema}.likes add primary key (post_id, user_id)`)
  // As autovacuum would have done some time ago. It is what makes COUNT(*) as fast as it can be.
  await pool.query(`vacuum (analyze) ${schema}.likes, ${schema}.posts`)
}

/** The number of like rows now. */
export async function countLikes(pool: Pool, { schema }: Playground): Promise<number> {
  const { rows } = await pool.query<{ count: string }>(`select count(*) as count from ${schema}.likes where post_id = $1`, [celebrity])
  return Number(rows[0]?.count)
}
