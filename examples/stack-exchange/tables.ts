import type { ClientBase, Pool } from 'pg'

import { copyInto } from './copy.ts'
import type { CopyRow } from './copy.ts'
import type { Post, Vote } from './dump.ts'
import type { Statement } from './plan.ts'

/** Of one post: its counter, what the votes in the table add up to, and what the dump says. */
export interface PostComparison {
  id: number
  counter: number
  votes: number
  score: number | null
}

export interface Comparison {
  posts: number
  votes: number
  /** Counters that are not what the votes add up to: there must be none. */
  wrongCounters: number
  /** Posts for which the dump has a score. */
  scores: number
  /** Counters that equal the dump's score. */
  matching: number
  /** Posts whose votes in the dump do not add up to their score in the dump. */
  contradictions: number
  /** Up- and down-votes for posts that the dump does not have (any more). */
  votesForMissingPosts: number
  missingPosts: number
  /** Some of the posts where anything differs, wrong counters first. */
  examples: PostComparison[]
}

const examplesShown = 10

/** The tables of this example, in a schema of their own. */
export class Tables {
  readonly schema: string
  readonly #pool: Pool

  constructor(pool: Pool, schema: string) {
    this.#pool = pool
    this.schema = schema
  }

  async create(): Promise<void> {
    await this.#pool.query(`
      create schema ${this.schema};

      -- score is the counter. Its updates find room on the page (HOT), as it is in no index.
      create table ${this.schema}.posts (
        id bigint primary key,
        created_at timestamptz,
        expected_score integer,
        tags text[] not null,
        score integer not null default 0
      ) with (fillfactor = 80);

      -- No foreign key: the dump has votes for posts that were deleted.
      create table ${this.schema}.votes (
        id bigint primary key,
        post_id bigint not null,
        vote_type smallint not null,
        cast_at timestamptz
      );

      -- A row for each vote and tag of its post, written and deleted by the statement that does so to the vote.
      create table ${this.schema}.tag_votes (
        vote_id bigint,
        tag text,
        vote_type smallint not null,
        cast_at timestamptz,
        primary key (vote_id, tag)
      );

      create view ${this.schema}.comparison as
        select p.id, p.score as counter, coalesce(v.votes, 0) as votes, p.expected_score as score
        from ${this.schema}.posts p
        left join (
          select post_id, count(*) filter (where vote_type = 2) - count(*) filter (where vote_type = 3) as votes
          from ${this.schema}.votes group by post_id
        ) v on v.post_id = p.id;`)
  }

  async drop(): Promise<void> {
    await this.#pool.query(`drop schema if exists ${this.schema} cascade`)
  }

  async loadPosts(client: ClientBase, posts: AsyncIterable<Post>, signal: AbortSignal): Promise<void> {
    await copyInto(client, `${this.schema}.posts (id, created_at, expected_score, tags)`, copyRows(posts), signal)
  }

  /** Many posts came in at once, so autovacuum has not looked at them yet. */
  async analyze(): Promise<void> {
    await this.#pool.query(`analyze ${this.schema}.posts`)
  }

  async execute(client: ClientBase, { kind, votes }: Statement): Promise<void> {
    const ids = votes.map(({ id }) => id)
    if (kind === 'withdraw') {
      await client.query(
        `with withdrawn as (delete from ${this.schema}.votes where id = any ($1::bigint[]) returning id)
        delete from ${this.schema}.tag_votes where vote_id in (select id from withdrawn)`,
        [ids],
      )
      return
    }
    await client.query(
      `with cast_votes as (
        insert into ${this.schema}.votes (id, post_id, vote_type, cast_at)
        select * from unnest($1::bigint[], $2::bigint[], $3::smallint[], $4::timestamptz[])
        returning *
      )
      insert into ${this.schema}.tag_votes (vote_id, tag, vote_type, cast_at)
      select v.id, tag, v.vote_type, v.cast_at
      from cast_votes v join ${this.schema}.posts p on p.id = v.post_id, unnest(p.tags) tag`,
      [ids, votes.map(({ postId }) => postId), votes.map(({ type }) => type), votes.map(({ castAt }) => castAt)],
    )
  }

  /** Which of the posts that these votes are for are not there. */
  async missingPosts(client: ClientBase, votes: readonly Vote[]): Promise<Set<number>> {
    const { rows } = await client.query<{ id: string }>(
      `select id::text from (select unnest($1::bigint[]) except select id from ${this.schema}.posts where id = any ($1::bigint[])) missing(id)`,
      [[...new Set(votes.map(({ postId }) => postId))]],
    )
    return new Set(rows.map(({ id }) => Number(id)))
  }

  async compare(): Promise<Comparison> {
    const counts = await this.#counts<'votes' | 'posts' | 'wrongCounters' | 'scores' | 'matching' | 'contradictions'>(`
      select
        (select count(*) from ${this.schema}.votes)::text as votes,
        count(*)::text as posts,
        (count(*) filter (where counter <> votes))::text as "wrongCounters",
        count(score)::text as scores,
        (count(*) filter (where counter = score))::text as matching,
        (count(*) filter (where votes <> score))::text as contradictions
      from ${this.schema}.comparison`)
    const missing = await this.#counts<'votes' | 'posts'>(`
      select count(*)::text as votes, count(distinct post_id)::text as posts
      from ${this.schema}.votes v
      where vote_type in (2, 3) and not exists (select from ${this.schema}.posts p where p.id = v.post_id)`)
    const nothingDiffers = counts.wrongCounters === 0 && counts.contradictions === 0
    return {
      ...counts,
      votesForMissingPosts: missing.votes,
      missingPosts: missing.posts,
      examples: nothingDiffers ? [] : await this.#examples(),
    }
  }

  async #counts<K extends string>(text: string): Promise<Record<K, number>> {
    const { rows } = await this.#pool.query<Record<K, string>>(text)
    return Object.fromEntries(Object.entries<string>(rows[0] ?? {}).map(([name, count]) => [name, Number(count)])) as Record<K, number>
  }

  async #examples(): Promise<PostComparison[]> {
    const { rows } = await this.#pool.query<{ comparison: string }>(
      `select row_to_json(c)::text as comparison from ${this.schema}.comparison c
      where counter <> votes or votes <> score
      order by counter <> votes desc, id limit ${examplesShown}`,
    )
    return rows.map(({ comparison }) => JSON.parse(comparison) as PostComparison)
  }
}

async function* copyRows(posts: AsyncIterable<Post>): AsyncGenerator<CopyRow, void, undefined> {
  // A tag has neither quotes nor backslashes.
  for await (const { id, createdAt, score, tags } of posts) yield [id, createdAt, score, `{${tags.map((tag) => `"${tag}"`).join(',')}}`]
}
