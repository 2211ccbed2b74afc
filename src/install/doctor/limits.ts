/** From where on the doctor mentions something, and how long it looks. */
export interface Limits {
  /** Of each check. */
  statementTimeoutMs: number
  /** A counter's events are applied within milliseconds while a worker runs. */
  counterLagSeconds: number
  /** Other consumers may wait on purpose until a batch is worth it. */
  consumerLagSeconds: number
  carriedSeconds: number
  transactionSeconds: number
  idleInTransactionSeconds: number
  preparedTransactionSeconds: number
  /** Transactions that were given out since the one that is held. */
  heldTransactions: number
  /** Of transaction ids or multixacts; at 2 000 million the server stops. Autovacuum sees to it from 200 million on. */
  wraparoundAge: number
  wraparoundAgeNear: number
  clockSeconds: number
  /** Below that an audit without an index takes no time. */
  sourceBytes: number
  deadRows: number
  /** So many updates say something about how a target is updated. */
  updates: number
}

export const defaultLimits: Limits = {
  statementTimeoutMs: 5000,
  counterLagSeconds: 60,
  consumerLagSeconds: 900,
  carriedSeconds: 60,
  transactionSeconds: 300,
  idleInTransactionSeconds: 60,
  preparedTransactionSeconds: 300,
  heldTransactions: 100_000,
  wraparoundAge: 500_000_000,
  wraparoundAgeNear: 1_500_000_000,
  clockSeconds: 60,
  sourceBytes: 2 ** 24,
  deadRows: 100_000,
  updates: 10_000,
}
