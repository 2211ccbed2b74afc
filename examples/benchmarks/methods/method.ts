import type pg from 'pg'

import type { Bench } from '../bench.ts'
import type { Process } from '../processes.ts'

/** The tables that every method has for itself, alike and empty. */
export interface Tables {
  schema: string
  /** (id, title, like_count) */
  posts: string
  /** (post_id, user_id, created_at), the first two of them the primary key */
  likes: string
}

type One = (client: pg.Client, post: number, user: number) => Promise<unknown>
type Many = (client: pg.Client, posts: readonly number[], users: readonly number[]) => Promise<unknown>

/** One way of counting likes. To add one, write such an object in a file of its own and name it in `all.ts`. */
export interface Method {
  readonly name: string
  /** Why it cannot run on this server and what to do about that; undefined when it can. */
  missing?(bench: Bench): Promise<string | undefined>
  open(bench: Bench, tables: Tables): Promise<OpenMethod>
}

export interface OpenMethod {
  like: One
  /** Of a like that is there. */
  unlike: One
  /** Many likes in one statement. */
  likeMany?: Many
  /** Query of (post_id, n), the counts as they are stored now; absent where nothing is stored. */
  stored?: string
  /** Starts what adds up, as a process of its own; absent where likes do that themselves. With `onLine`, a line of JSON with `ms` tells of each batch. */
  consume?(onLine?: (line: string) => void): Promise<Process>
  /** Adds up everything that has been committed. Default: with `consume()`. */
  settle?(): Promise<void>
  /** Gives everything back that the emptied tables do not. */
  reset?(): Promise<void>
  /** Schemas of its own, beside that of the tables. */
  schemas?: readonly string[]
  close?(): Promise<void>
}

/** Statements that change `likes` and then do what `follow` says with the changed rows, `changed (post_id)`; `followMany` where one form would not do for many. */
export function statements({ likes }: Tables, follow: (delta: 1 | -1) => string, followMany: string = follow(1)): Required<Pick<OpenMethod, 'like' | 'unlike' | 'likeMany'>> {
  const changing = (change: string, then: string) => `with changed as (${change} returning post_id) ${then}`
  const liked = changing(insertLike(likes), follow(1))
  const unliked = changing(deleteLike(likes), follow(-1))
  const likedMany = changing(insertLikes(likes), followMany)
  return {
    like: (client, post, user) => client.query(liked, [post, user]),
    unlike: (client, post, user) => client.query(unliked, [post, user]),
    likeMany: (client, posts, users) => client.query(likedMany, [posts, users]),
  }
}

/** Nothing but the row; whatever else happens is a trigger's doing. */
export function bareStatements({ likes }: Tables): Required<Pick<OpenMethod, 'like' | 'unlike' | 'likeMany'>> {
  return {
    like: (client, post, user) => client.query(insertLike(likes), [post, user]),
    unlike: (client, post, user) => client.query(deleteLike(likes), [post, user]),
    likeMany: (client, posts, users) => client.query(insertLikes(likes), [posts, users]),
  }
}

const insertLike = (likes: string) => `insert into ${likes} (post_id, user_id) values ($1, $2)`
const deleteLike = (likes: string) => `delete from ${likes} where post_id = $1 and user_id = $2`
const insertLikes = (likes: string) => `insert into ${likes} (post_id, user_id) select * from unnest($1::bigint[], $2::bigint[])`

export const storedInPosts = ({ posts }: Tables) => `select id as post_id, like_count as n from ${posts}`
